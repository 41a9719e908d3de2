"""The Envoy process: its bootstrap, and its supervision across crashes, restarts and upgrades."""
