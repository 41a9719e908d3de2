"""The process runtime against real processes, in every tier the machine can give."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from sampan.parts.node.runtime import syscalls
from sampan.parts.node.runtime.interface import ExecSpec, Limits, Memory, Mount, Root
from sampan.parts.node.runtime.process import LaunchFailedError
from tests.clients.node_runtime import Bench, bench

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(params=["auto", "T1n", "T2", "T3"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path / "node", request.param) as made:
        if request.param in ("T1n", "T2") and made.runtime.tier != request.param:
            pytest.skip(f"not to be had here: {made.runtime.why}")
        yield made


@pytest.fixture
async def best(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path / "node") as made:
        yield made


async def test_a_container_runs_logs_and_ends(node: Bench) -> None:
    await node.pod()
    await node.run("c", "sh", "-c", "echo out; echo err >&2; echo $A; exit 3", env={"A": "b"})
    record = await node.exit("c")
    assert (record.code, record.signal, record.oom) == (3, 0, False)
    assert sorted(node.log("c").splitlines()) == ["b", "err", "out"]


async def test_a_command_that_does_not_exist_is_told(node: Bench) -> None:
    await node.pod()
    with pytest.raises(LaunchFailedError, match="executable file not found") as raised:
        await node.run("c", "no-such-command")
    assert raised.value.code == 127
    assert (await node.exit("c")).error


async def test_signals_reach_the_program_and_a_pod_leaves_nothing(node: Bench) -> None:
    await node.pod()
    await node.run("c", "sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    for _ in range(2000):
        if "ready" in node.log("c"):
            break
        await asyncio.sleep(0.02)
    await node.runtime.signal("c", signal.SIGTERM)
    assert (await node.exit("c")).code == 5
    assert node.log("c").splitlines()[-1] == "bye"
    other = await node.run("d", "sh", "-c", "sleep 1000 & sleep 1000")
    await node.runtime.remove_sandbox("pod-1")
    assert (await node.exit("d")).code == 137
    assert not psutil.pid_exists(other.pid)
    assert await node.runtime.list() == ([], [])


async def test_exec_speaks_and_tells_its_exit_code(node: Bench) -> None:
    await node.pod()
    await node.run("c", "sleep", "1000", env={"A": "b"})
    process = await node.runtime.exec(ExecSpec("c", ("sh", "-c", "cat; echo $A >&2; exit 7"), stdin=True))
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    os.write(process.stdin, b"hello")
    os.close(process.stdin)
    process.stdin = None
    assert await process.wait() == 7
    assert os.read(process.stdout, 100) == b"hello"
    assert os.read(process.stderr, 100) == b"b\n"
    process.close()
    terminal = await node.runtime.exec(ExecSpec("c", ("sh", "-c", "test -t 0 && stty size"), tty=True, stdin=True))
    terminal.resize(100, 40)
    assert await terminal.wait() == 0
    terminal.close()
    with pytest.raises(LaunchFailedError, match="not found"):
        await node.runtime.exec(ExecSpec("c", ("nope",)))


async def test_attach_passes_streams_both_ways(node: Bench) -> None:
    await node.pod()
    await node.run("c", "sh", "-c", "while read line; do echo got $line; done; echo end", stdin=True, stdin_once=True)
    process = await node.runtime.attach("c", stdin=True, stdout=True, stderr=True)
    assert process.stdin is not None
    assert process.stdout is not None
    os.write(process.stdin, b"one\n")
    assert await asyncio.to_thread(os.read, process.stdout, 100) == b"got one\n"
    os.close(process.stdin)
    process.stdin = None
    assert (await node.exit("c")).code == 0
    assert await asyncio.to_thread(os.read, process.stdout, 100) == b"end\n"
    process.close()
    assert node.log("c") == "got one\nend"


async def test_python_comes_from_the_zygote_and_looks_freshly_started(node: Bench) -> None:
    await node.pod()
    await node.runtime.warm(sys.executable)
    program = (
        "import os, sys, signal, random; print(sys.argv, os.environ['A'], __name__, 'HOME' in os.environ);"
        "print('warm' if 'asyncio' in sys.modules else 'cold'); sys.stdout.flush();"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL); 1/0"
    )
    for number in range(100):
        name = f"c{number}"
        await node.run(name, sys.executable, "-c", program, "x", env={"A": "b"}, python=sys.executable)
        record = await node.exit(name)
        if "warm" in node.log(name):
            break
        await asyncio.sleep(0.2)
    else:
        pytest.fail("no container came from the zygote")
    assert record.code == 1
    lines = node.log(name).splitlines()
    assert "['-c', 'x'] b __main__ True" in lines
    assert "True" in lines
    assert "ZeroDivisionError: division by zero" in lines
    assert not [line for line in lines if "zygote.py" in line]


@root
async def test_a_pod_sees_its_own_files_only(best: Bench, tmp_path: Path) -> None:
    layer, volume = tmp_path / "layer", tmp_path / "volume"
    (layer / "app").mkdir(parents=True)
    (layer / "app/file").write_text("from the image")
    volume.mkdir()
    (volume / "data").write_text("from the volume")
    memory = best.runtime.layout.memory("pod-1", "m")
    await best.pod(memory=(Memory(str(memory), 1 << 20),))
    script = f"""
        cat /app/file /data/data; echo
        echo changed > /app/file; echo x > /usr/new; touch /etc/mine
        (echo no > /data/data) 2>/dev/null || echo read-only
        test -e {best.directory} || echo hidden
        df /mem | grep -c tmpfs; echo shared > /mem/s; hostname; echo $$
    """
    mounts = (Mount(str(volume), "/data", read_only=True), Mount(str(memory), "/mem"))
    await best.run("c", "sh", "-c", script, root=Root(layers=(str(layer),)), mounts=mounts, cwd="/app")
    assert (await best.exit("c")).code == 0
    lines = best.log("c").splitlines()
    assert lines[:5] == ["from the imagefrom the volume", "read-only", "hidden", "1", "pod-1"]
    assert int(lines[5]) < 50
    assert (layer / "app/file").read_text() == "from the image"
    assert subprocess.run(["test", "-e", "/usr/new", "-o", "-e", "/etc/mine"], check=False).returncode == 1  # noqa: ASYNC221
    await best.run("d", "cat", "/mem/s", mounts=(Mount(str(memory), "/mem"),))
    assert (await best.exit("d")).code == 0
    assert best.log("d") == "shared"


@root
async def test_privileges_are_dropped(best: Bench) -> None:
    await best.pod()
    await best.run(
        "c", "sh", "-c", "id -u; id -g; id -G; mount -t tmpfs t /mnt 2>&1 || echo refused", uid=1234, gid=5, groups=(7,)
    )
    assert (await best.exit("c")).code == 0
    lines = best.log("c").splitlines()
    assert lines[:2] == ["1234", "5"]
    assert "7" in lines[2].split()
    assert lines[-1] == "refused"
    await best.run("r", "sh", "-c", "touch /x || echo read-only", root=Root(read_only=True))
    await best.exit("r")
    assert "read-only" in best.log("r")


async def test_the_default_seccomp_filter_holds_what_starts_and_what_joins(node: Bench) -> None:
    await node.pod()
    mode = "grep ^Seccomp_filters: /proc/self/status"
    await node.run("free", "sh", "-c", mode)
    await node.run("c", "sh", "-c", f"{mode}; exec sleep 1000", seccomp=True)
    await node.run("u", "sh", "-c", "unshare -m true 2>/dev/null || echo refused", seccomp=True)
    process = await node.runtime.exec(ExecSpec("c", ("sh", "-c", mode)))
    assert await process.wait() == 0
    assert process.stdout is not None
    joined = os.read(process.stdout, 100).decode()
    process.close()
    python = f"import subprocess; subprocess.run({mode!r}, shell=True)"
    await node.run("p", sys.executable, "-c", python, python=sys.executable, seccomp=True)
    assert (await node.exit("p")).code == 0
    await node.exit("free")
    own = int(node.log("free").split()[1])
    for text in (node.log("p"), node.log("c"), joined):
        assert int(text.split()[1]) == own + 1
    await node.exit("u")
    assert node.log("u") == "refused"


def free_ports(count: int) -> list[int]:
    """Ports that nobody on the machine has: a program that listens on all addresses takes a port from the pods, too."""
    held = [socket.create_server(("", 0)) for _ in range(count)]
    numbers = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return numbers


async def says(node: Bench, name: str, wanted: str, pod: str = "pod-1") -> None:
    """Wait until a container has written this."""
    try:
        async with asyncio.timeout(40):
            while wanted not in node.log(name, pod):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{name} does not say {wanted!r}: {node.log(name, pod)}") from None


async def test_two_pods_serve_at_the_same_ports_and_have_a_localhost_of_their_own(node: Bench) -> None:
    serve = (
        "import socket, sys, threading\n"
        "everywhere, local = socket.create_server(('', A)), socket.create_server(('127.0.0.1', B))\n"
        "def answer(server, text):\n"
        "    while True:\n"
        "        connection, peer = server.accept()\n"
        "        connection.sendall(f'{sys.argv[1]} {text} {peer[0]}'.encode()); connection.close()\n"
        "for one in ((everywhere, 'everywhere'), (local, 'local')):\n"
        "    threading.Thread(target=answer, args=one).start()\n"
        "for port in (A, B):\n"
        "    print(socket.create_connection(('localhost', port)).recv(100).decode(), flush=True)\n"
        "client = socket.socket(); client.setblocking(False)\n"
        "print(client.connect_ex(('127.0.0.1', A)) in (0, 115), flush=True)\n"
    )
    ask = (
        "import socket, sys\n"
        "print(socket.create_connection((sys.argv[1], A)).recv(100).decode())\n"
        "try: print(socket.create_connection((sys.argv[1], B)))\n"
        "except ConnectionRefusedError: print('refused')\n"
    )
    shared, local = free_ports(2)
    serve, ask = (text.replace("A", str(shared)).replace("B", str(local)) for text in (serve, ask))
    addresses = {}
    for pod in ("a", "b"):
        addresses[pod] = await node.pod(pod)
        await node.run(f"serve-{pod}", sys.executable, "-c", serve, pod, pod=pod)
    for pod in ("a", "b"):
        await says(node, f"serve-{pod}", "True", pod)
    for pod in ("a", "b"):
        own = addresses[pod]
        wanted = [f"{pod} everywhere", f"{pod} local", "True"]
        assert [
            re.sub(r" (::ffff:)?[\d.]+$", "", line) for line in node.log(f"serve-{pod}", pod).splitlines()
        ] == wanted
        other = "b" if pod == "a" else "a"
        await node.run(f"ask-{pod}", sys.executable, "-c", ask, addresses[other], pod=pod)
        await node.exit(f"ask-{pod}")
        assert node.log(f"ask-{pod}", pod).splitlines() == [f"{other} everywhere {own}", "refused"]


async def test_sockets_of_threads_and_full_backlogs_find_their_way(node: Bench) -> None:
    program = (
        "import socket, threading, time\n"
        "server = socket.socket(); server.bind(('', A)); server.listen(2)\n"
        "connected = []\n"
        "def connect():\n"
        "    one = socket.create_connection(('127.0.0.1', A)); one.sendall(b'x'); connected.append(one)\n"
        "threads = [threading.Thread(target=connect) for _ in range(6)]\n"
        "for thread in threads: thread.start()\n"
        "time.sleep(0.3)\n"
        "print(len(connected) < 6, flush=True)\n"
        "accepted = [server.accept()[0].recv(1) for _ in range(6)]\n"
        "for thread in threads: thread.join()\n"
        "print(len(accepted), len(connected), flush=True)\n"
        "import os\n"
        "try: socket.socket(fileno=os.open('/dev/null', 0)).connect(('127.0.0.1', 1))\n"
        "except OSError as error: print(error.errno == 88, flush=True)\n"
        "try: socket.create_connection(('127.0.0.1', 9))\n"
        "except ConnectionRefusedError: print('refused', flush=True)\n"
        "time.sleep(1000)\n"
    )
    await node.pod()
    await node.run("c", sys.executable, "-c", program.replace("A", str(free_ports(1)[0])))
    await says(node, "c", "refused")
    assert node.log("c").splitlines() == ["True", "6 6", "True", "refused"]
    keeper = psutil.Process(node.runtime.keeper_pid)
    held = keeper.num_fds()
    for _ in range(20):
        process = await node.runtime.exec(ExecSpec("c", ("true",)))
        assert await process.wait() == 0
        process.close()
    async with asyncio.timeout(40):
        while keeper.num_fds() > held:
            await asyncio.sleep(0.05)


SERVER = (
    "import socket, sys\n"
    "s = socket.create_server(('', 8080)); l = socket.create_server(('127.0.0.1', 9000))\n"
    "print('up', flush=True)\n"
    "while True:\n"
    "    c, a = s.accept(); c.sendall(a[0].encode()); c.close()\n"
)
CLIENT = (
    "import socket, sys\n"
    "for host, port in (('{peer}', 8080), ('127.0.0.1', 9000), ('127.0.0.1', 8080)):\n"
    "    try:\n"
    "        with socket.create_connection((host, port), 2) as c: print(c.recv(100).decode() if port == 8080 else 'open')\n"
    "    except OSError as e: print(type(e).__name__)\n"
)


@root
async def test_pods_have_addresses_and_localhosts_of_their_own(best: Bench) -> None:
    if best.runtime.tier != "T1":
        pytest.skip(f"no pod addresses here: {best.runtime.why}")
    first, second = await best.pod("pod-1"), await best.pod("pod-2")
    assert first != second
    for pod in ("pod-1", "pod-2"):
        await best.run(f"server-{pod}", sys.executable, "-uc", SERVER, pod=pod)
    for pod in ("pod-1", "pod-2"):
        for _ in range(2000):
            if "up" in best.log(f"server-{pod}", pod):
                break
            await asyncio.sleep(0.02)
    await best.run("client", sys.executable, "-c", CLIENT.format(peer=second), pod="pod-1")
    await best.exit("client")
    assert best.log("client").splitlines() == [first, "open", first]
    await best.pod("pod-3")
    await best.run("other", sys.executable, "-c", CLIENT.format(peer=first), pod="pod-3")
    await best.exit("other")
    assert best.log("other", "pod-3").splitlines()[1:] == ["ConnectionRefusedError", "ConnectionRefusedError"]
    connection = await best.runtime.dial("pod-1", 9000)
    connection.close()


@root
async def test_a_pod_may_ask_for_a_network_namespace(best: Bench) -> None:
    if best.runtime.isolation != "root":
        pytest.skip("needs namespaces")
    address = await best.pod(network="namespace")
    await best.run("c", sys.executable, "-uc", SERVER)
    for _ in range(2000):
        if "up" in best.log("c"):
            break
        await asyncio.sleep(0.02)
    connection = await best.runtime.dial("pod-1", 8080)
    assert await asyncio.get_running_loop().sock_recv(connection, 100) == b"169.254.1.1"
    connection.close()
    assert address.startswith("10.")
    connection = await best.runtime.dial("pod-1", 9000)  # listens on the pod's localhost only
    connection.close()


def _is_first(pid: int) -> bool:
    """The process is the first of a pid namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE) is not None


def _open_files(pid: int) -> set[str]:
    return {str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()}


async def ahead(node: Bench) -> psutil.Process:
    """The process that waits for the next sandbox, a fork of the keeper, once the first pod's is a program of its own."""
    keeper = psutil.Process(node.runtime.keeper_pid)
    for _ in range(500):
        with contextlib.suppress(psutil.NoSuchProcess):
            children = keeper.children()
            forks = [one for one in children if one.cmdline() == keeper.cmdline() and _is_first(one.pid)]
            if forks and any(one.name() == "pause" for one in children):
                return forks[0]
        await asyncio.sleep(0.02)
    raise AssertionError("no process is ahead")


async def test_a_sandbox_that_was_prepared_is_like_any_other(node: Bench) -> None:
    if node.runtime.isolation == "none":
        pytest.skip("sandboxes have no process here")
    if node.runtime.tier == "T1n":
        pytest.skip("pods with network namespaces are forked as they come")
    await node.pod("first")
    prepared = await ahead(node)
    await node.pod("second")
    for _ in range(500):
        if prepared.name() == "pause":
            break
        await asyncio.sleep(0.02)
    assert prepared.name() == "pause"
    await node.run("c", "sh", "-c", "hostname; echo $$; ls -d /dev/shm", pod="second")
    assert (await node.exit("c")).code == 0
    assert node.log("c", "second").splitlines()[0] == "second"
    await node.runtime.remove_sandbox("second")
    assert not prepared.is_running()


@root
async def test_a_prepared_sandbox_shows_what_was_mounted_meanwhile(best: Bench, tmp_path: Path) -> None:
    if best.runtime.isolation != "root":
        pytest.skip("mounts need root")
    await best.pod("first")
    await ahead(best)
    place = tmp_path / "late"
    place.mkdir()
    await asyncio.to_thread(syscalls.mount, "tmpfs", str(place), "tmpfs")
    try:
        (place / "file").write_text("mounted later")
        await best.pod("second")
        await best.run("c", "cat", "/late/file", pod="second", mounts=(Mount(str(place), "/late"),))
        assert (await best.exit("c")).code == 0
        assert best.log("c", "second") == "mounted later"
        await best.runtime.remove_sandbox("second")
    finally:
        await asyncio.to_thread(syscalls.umount, str(place))


async def test_a_prepared_process_that_is_killed_is_not_missed(node: Bench) -> None:
    if node.runtime.isolation == "none":
        pytest.skip("sandboxes have no process here")
    await node.pod("first")
    (await ahead(node)).kill()
    await node.pod("second")
    await node.run("c", "echo", "here", pod="second")
    assert (await node.exit("c")).code == 0
    assert node.log("c", "second") == "here"


async def test_a_prepared_process_keeps_nothing_of_others_open(node: Bench) -> None:
    if node.runtime.isolation == "none":
        pytest.skip("sandboxes have no process here")
    await node.pod()
    await node.run("c", "cat", stdin=True, stdin_once=True)
    process = await node.runtime.attach("c", stdin=True, stdout=True, stderr=True)
    prepared = await ahead(node)
    opened = _open_files(prepared.pid) - {"/dev/null"}
    assert len(opened) == 1, opened
    assert process.stdin is not None
    os.close(process.stdin)
    process.stdin = None
    assert (await node.exit("c")).code == 0
    process.close()


@root
async def test_limits_hold(best: Bench) -> None:
    await best.pod()
    if "memory" in best.runtime.controllers:
        hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
        await best.run("hog", sys.executable, "-c", hog, limits=Limits(memory=40 << 20))
        record = await best.exit("hog")
        assert (record.code, record.oom) == (137, True)
    if "pids" in best.runtime.controllers:
        forks = "import os, time\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(100)\nexcept OSError as e: print(e.errno)"
        await best.run("bomb", sys.executable, "-c", forks, limits=Limits(pids=20))
        assert (await best.exit("bomb")).code == 0
        assert best.log("bomb") == "11"
    await best.run("s", "sleep", "100")
    for _ in range(500):
        usage = await best.runtime.usage(["s", "gone"])
        assert list(usage) == ["s"]
        if usage["s"].pids == 1:  # what brought the program there has ended too
            return
        await asyncio.sleep(0.02)
    raise AssertionError(usage)


async def test_a_flood_of_logs_stays_bounded(node: Bench) -> None:
    await node.pod()
    await node.run(
        "c",
        "sh",
        "-c",
        "yes 0123456789012345678901234567890123456789 | head -c 30000000",
        log_size=1 << 20,
        log_files=3,
    )
    assert (await node.exit("c")).code == 0
    directory = node.runtime.layout.log("pod-1", "c", 0).parent
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 3 << 20


async def test_a_node_that_does_not_come_up_leaves_no_keeper_behind(tmp_path: Path) -> None:
    async with bench(tmp_path / "node", end=False) as made:
        keeper = psutil.Process(made.runtime.keeper_pid)
        await made.runtime.give_up()
        assert not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE


async def test_the_keeper_of_an_earlier_start_and_its_pods_stay_when_a_node_does_not_come_up(tmp_path: Path) -> None:
    async with bench(tmp_path / "node", end=False) as made:
        await made.pod()
    async with bench(tmp_path / "node") as again:
        await again.runtime.give_up()
        sandboxes, _ = await again.runtime.list()
        assert [sandbox.id for sandbox in sandboxes] == ["pod-1"]
