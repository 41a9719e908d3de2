"""The kubelet API: logs, exec, attach, port-forward and statistics of this node's pods."""
