"""Loops that keep the network in step with the objects, one a file."""
