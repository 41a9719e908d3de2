"""The Knative Pod Autoscaler: settings, windows of samples, and the decision, all without I/O."""
