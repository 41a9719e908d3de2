"""A whole platform for a test, isolated, on free ports, with a clock the test steers.

With pytest the fixtures of ``sampan.testing.plugin`` are there as soon as Sampan is installed. Without pytest::

    with sampan.testing.Platform() as platform:             # on a thread of its own: for blocking code and any client
        subprocess.run(["kubectl", "get", "ns"], env={**os.environ, "KUBECONFIG": str(platform.kubeconfig)})
        platform.clock.jump(3 * 86400)

    async with sampan.testing.Platform() as platform:       # in the running event loop: for asyncio code
        ...
"""

from sampan.testing.platform import Platform, SteeredClock

__all__ = ["Platform", "SteeredClock"]
