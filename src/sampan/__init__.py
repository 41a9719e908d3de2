"""Sampan: the whole cloud-native stack on one machine.

Read ``kernel`` first (clock, part, platform), then ``kube`` (the API every part meets on), then a part's ``part.py``.
"""

import os

__version__ = "0.1.0"

# gRPC's fork handlers would note on stderr, each time a child process starts, that they do nothing here
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
