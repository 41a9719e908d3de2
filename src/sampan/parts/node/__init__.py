"""The node agent: pods as processes, probes, logs, exec, images, volumes."""
