"""The controllers of eventing, one kind (or one closely tied family of kinds) a module."""
