"""Programming Envoy: the schema, the delta protocol as a state machine, its server, and ordered publication."""
