"""Names of the built-in resources, for use with a `Client`; they are defined in ``kube.resources``."""

from sampan.kube.resources import *  # noqa: F403 (this module is the other one's public face)
