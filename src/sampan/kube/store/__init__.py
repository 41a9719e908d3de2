"""The versioned object store: interface, core, and drivers."""
