"""The built-in kinds, one module an API group (core, being large, has several)."""
