"""Sampan: the whole cloud-native stack on one machine.

Read ``kernel`` first (clock, part, platform), then ``kube`` (the API every part meets on), then a part's ``part.py``.
"""

__version__ = "0.1.0"
