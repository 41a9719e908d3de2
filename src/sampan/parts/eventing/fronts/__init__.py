"""What listens: the HTTP ingress of brokers, channels and sinks."""
