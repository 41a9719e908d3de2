"""Workloads: the controllers that turn Deployments, StatefulSets, Jobs and their kin into pods, and the scheduler."""
