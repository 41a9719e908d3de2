"""Where the model comes from: one module a kind of configuration, each from objects to listeners and statuses."""
