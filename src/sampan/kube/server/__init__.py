"""The API server: verbs, HTTP, discovery, OpenAPI, watch, negotiation."""
