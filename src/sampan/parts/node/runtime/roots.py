"""A container's root: what it sees of the machine.

The root of a container without a system of its own is an overlay of the image's layers on an empty skeleton, overlays of the
host's /usr and /etc (private and writable), /proc, /dev, and the mounts of the spec. Nothing else of the host is there:
neither the node's directory nor other pods' files. Both roots are visible while mounts are made (the old one at ``/.node``),
so mount targets resolve inside the container's own symlinks.
"""

from __future__ import annotations

import errno
import os

from sampan.parts.node.runtime import beneath, syscalls
from sampan.parts.node.runtime.interface import ContainerSpec, Mount
from sampan.parts.node.runtime.privileges import LaunchError

_OLD = "/.node"
_HOST_DIRECTORIES = ("usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_EMPTY_DIRECTORIES = ("dev", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "var")
_VAR_DIRECTORIES = ("cache", "lib", "local", "log", "mail", "opt", "spool", "tmp")


def make_skeleton(directory: str) -> None:
    """The directories and links at the top of every container's root; idempotent."""
    for name in _HOST_DIRECTORIES:
        host, mine = f"/{name}", f"{directory}/{name}"
        if os.path.lexists(mine):
            continue
        if os.path.islink(host):
            os.symlink(os.readlink(host), mine)
        elif os.path.isdir(host):
            os.makedirs(mine, exist_ok=True)
    for name in _EMPTY_DIRECTORIES:
        os.makedirs(f"{directory}/{name}", exist_ok=True)
    for name in _VAR_DIRECTORIES:
        os.makedirs(f"{directory}/var/{name}", exist_ok=True)
    if not os.path.lexists(f"{directory}/var/run"):
        os.symlink("/run", f"{directory}/var/run")
    os.chmod(f"{directory}/tmp", 0o1777)
    os.chmod(f"{directory}/var/tmp", 0o1777)
    os.chmod(f"{directory}/root", 0o700)


def build_root(spec: ContainerSpec, directory: str, skeleton: str, devices: str) -> None:
    """Give the process the container's own root, in a mount namespace of its own. Raises OSError or LaunchError."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = f"{directory}/root"
    scratch = directory
    lower = [*spec.root.layers, *([skeleton] if spec.root.host else [])]
    try:
        _overlay(lower, scratch, "", root)
    except OSError:
        # a writable layer cannot lie on every file system (another overlay, some network ones): keep it in memory
        scratch = f"{directory}/work"
        syscalls.mount("tmpfs", scratch, "tmpfs", 0, "mode=755")
        _overlay(lower, scratch, "", root)
    writable = [root]
    if spec.root.host:
        for name in _HOST_DIRECTORIES:
            if os.path.islink(f"/{name}") or not os.path.isdir(f"/{name}"):
                continue
            below = [layer for layer in (f"{layer}/{name}" for layer in spec.root.layers) if os.path.isdir(layer)]
            _overlay([*below, f"/{name}"], scratch, name, f"{root}/{name}")
            writable.append(f"{root}/{name}")
    os.makedirs(root + _OLD, exist_ok=True)
    _pivot(root, root + _OLD)
    for extra in spec.root.extra:
        if os.path.isdir(_OLD + extra):
            os.makedirs(extra, exist_ok=True)
            syscalls.bind(_OLD + extra, extra, read_only=True)
    _system_mounts(devices, privileged=spec.privileged, own_network=spec.own_network)
    for mount in sorted(spec.mounts, key=lambda mount: mount.target.count("/")):
        _mount(mount)
    if spec.cwd:
        try:
            os.makedirs(spec.cwd, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"working directory {spec.cwd}: {error.strerror}") from error
    syscalls.umount(_OLD)
    os.rmdir(_OLD)
    if spec.root.read_only:
        syscalls.remount_read_only("/")
        for path in writable[1:]:
            syscalls.remount_read_only(path.removeprefix(root))


def _overlay(lower: list[str], scratch: str, name: str, target: str) -> None:
    upper, work = f"{scratch}/upper-{name}", f"{scratch}/work-{name}"
    os.makedirs(upper, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    # overlayfs wants at least two lower directories or an upper one; colons in paths are escaped
    paths = ":".join(path.replace("\\", "\\\\").replace(":", "\\:") for path in lower)
    data = f"lowerdir={paths},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", target, "overlay", 0, data)


def _pivot(root: str, old: str) -> None:
    os.chdir(root)
    syscalls.pivot(".", old.removeprefix(root + "/"))
    os.chdir("/")


def _system_mounts(devices: str, *, privileged: bool, own_network: bool) -> None:
    os.makedirs("/proc", exist_ok=True)
    os.makedirs("/sys", exist_ok=True)
    os.makedirs("/dev", exist_ok=True)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        syscalls.mount("proc", "/proc", "proc", flags)
    except PermissionError:
        syscalls.bind(f"{_OLD}/proc", "/proc")  # a user namespace under a masked /proc
    if own_network:
        # a mount of its own shows the interfaces of this network namespace
        syscalls.mount("sysfs", "/sys", "sysfs", flags | (0 if privileged else syscalls.MS_RDONLY))
        if privileged:
            syscalls.bind(f"{_OLD}/dev", "/dev")
        else:
            syscalls.bind(_OLD + devices, "/dev")
        return
    if privileged:
        syscalls.bind(f"{_OLD}/sys", "/sys")
        syscalls.bind(f"{_OLD}/dev", "/dev")
        return
    try:
        syscalls.bind(f"{_OLD}/sys", "/sys", read_only=True, recursive=False)
    except OSError:
        syscalls.bind(f"{_OLD}/sys", "/sys", recursive=True)  # a user namespace may not reveal what is mounted over
    syscalls.bind(_OLD + devices, "/dev")


def _mount(mount: Mount) -> None:
    """Bind the source as it is now: what was looked at is what is mounted, whatever becomes of its path meanwhile."""
    root = os.open(_OLD, os.O_PATH | os.O_DIRECTORY)
    opened = [root]
    try:
        opened.append(syscalls.open_in_root(root, mount.source))
        if mount.sub:
            opened.append(beneath.make(f"/proc/self/fd/{opened[-1]}", mount.sub))
        source = f"/proc/self/fd/{opened[-1]}"
        if os.path.isdir(source):
            os.makedirs(mount.target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(mount.target) or "/", exist_ok=True)
            if not os.path.exists(mount.target):
                os.close(os.open(mount.target, os.O_CREAT | os.O_WRONLY, 0o644))
        syscalls.bind(source, mount.target, read_only=mount.read_only)
    except OSError as error:
        why = "it leads out of its volume" if error.errno == errno.EXDEV else os.strerror(error.errno or 0)
        place = f"{mount.source}/{mount.sub}" if mount.sub else mount.source
        raise LaunchError(f"failed to mount {place} at {mount.target}: {why.lower()}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
