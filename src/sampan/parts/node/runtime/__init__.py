"""Where pods become processes: the runtime interface, and the driver that needs no container engine."""
