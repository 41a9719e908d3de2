"""Services, cluster DNS and NetworkPolicy: how pods find and reach each other by name."""
