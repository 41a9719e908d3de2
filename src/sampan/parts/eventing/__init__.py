"""Eventing: CloudEvents over HTTP, brokers and triggers, channels and flows, sources and sinks. `part` is where to begin reading."""
