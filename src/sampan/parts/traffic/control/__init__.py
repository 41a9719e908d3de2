"""From changes of objects to a published configuration and written statuses."""
