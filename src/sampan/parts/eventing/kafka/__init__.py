"""Kafka as a source of events: `records` turns a record into an event, `reader` reads topics as a member of a consumer group."""
