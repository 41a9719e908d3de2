"""Serving: Knative Services on the platform. Revisions, routes, autoscaling to zero and back, functions."""
