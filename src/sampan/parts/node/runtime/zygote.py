"""The zygote: a warm Python that turns into a container's program in milliseconds.

A single-threaded process of one interpreter (a dependency environment's, or the base one) imports what programs commonly
import, freezes the garbage collector, and forks: always one ahead, a spare that waits for the next request, because a fork of so
much takes as long as what follows it. The fork joins its pod exactly as an exec'ed process does
(``launch``) and then *is* the program: ``python app.py``, ``python -m x``, ``python -c ...`` or a console script whose first
line names a Python. Anything else (another interpreter, options that must be given at start, a shell) is simply exec'ed from
there; so a wrong guess costs a few milliseconds, never correctness.

Run as a script by the interpreter it serves: ``<interpreter> zygote.py <descriptor>``. It needs the standard library and this
package's files only, found by their place, so Sampan's own dependencies never leak into a program. The descriptor is a
SOCK_SEQPACKET socket to the keeper; a request is JSON with four descriptors: stdin, stdout, stderr, status.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

_HERE = Path(__file__).resolve()
_REST = 0.2
"""Seconds until the next spare is forked, unless a request is there: the program that has just begun needs the processor more."""
_GONE = 3
"""A spare's exit code once the keeper is gone."""

STANDARD = [
    "argparse",
    "asyncio",
    "base64",
    "collections",
    "concurrent.futures",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "email.message",
    "email.parser",
    "enum",
    "functools",
    "hashlib",
    "hmac",
    "html",
    "http.client",
    "http.cookies",
    "http.server",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "logging",
    "logging.config",
    "logging.handlers",
    "mimetypes",
    "multiprocessing.connection",
    "operator",
    "pathlib",
    "pickle",
    "platform",
    "queue",
    "random",
    "re",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "socketserver",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "types",
    "typing",
    "unittest.mock",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "weakref",
    "xml.etree.ElementTree",
    "zipfile",
    "zlib",
]
THIRD_PARTY = [
    "aiohttp",
    "aiohttp.web",
    "anyio",
    "attrs",
    "bottle",
    "certifi",
    "click",
    "django",
    "fastapi",
    "fastapi.applications",
    "flask",
    "gunicorn",
    "h11",
    "httptools",
    "httpx",
    "idna",
    "jinja2",
    "markupsafe",
    "msgpack",
    "msgspec",
    "multidict",
    "orjson",
    "pydantic",
    "pydantic_core",
    "redis",
    "requests",
    "simplejson",
    "starlette.applications",
    "starlette.routing",
    "tornado.web",
    "typing_extensions",
    "urllib3",
    "uvicorn",
    "uvicorn.main",
    "uvloop",
    "websockets",
    "werkzeug.serving",
    "yaml",
    "yarl",
]
"""Imported when the environment has them. Nothing that starts threads at import or that breaks when forked."""


def _own_package() -> None:
    """Make ``sampan.parts.node.runtime`` importable by place, without putting anything on sys.path."""
    place = _HERE.parents[3]
    for name, directory in (
        ("sampan", place),
        ("sampan.parts", place / "parts"),
        ("sampan.parts.node", place / "parts" / "node"),
        ("sampan.parts.node.runtime", _HERE.parent),
        ("sampan.kernel", place / "kernel"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(directory)]
        sys.modules[name] = package


def warm_up() -> None:
    """Import what programs commonly need; one that fails to import is left for the program to meet."""
    for name in (*STANDARD, *THIRD_PARTY):
        try:
            importlib.import_module(name)
        except Exception:  # noqa: S112 - any error at import is the program's to see
            continue


def main() -> None:
    """Serve fork requests until the keeper goes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.setblocking(True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _own_package()
    launch = importlib.import_module("sampan.parts.node.runtime.launch")
    sampan_modules = {name for name in sys.modules if name.split(".")[0] == "sampan"}
    warm_up()
    if len(os.listdir("/proc/self/task")) != 1:
        raise SystemExit("something imported starts threads; this environment's programs are exec'ed")
    gc.collect()
    gc.freeze()
    connection.send(b'{"ready": true}')
    while True:
        pid = os.fork()
        if not pid:
            message, descriptors = _request(connection)
            connection.close()
            _fork(launch, json.loads(message), descriptors, sampan_modules)
            return
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == _GONE:
            return
        select.select([connection], [], [], _REST)


def _request(connection: socket.socket) -> tuple[bytes, list[int]]:
    """In a spare: the request it becomes; ends the process when the keeper is gone."""
    try:
        message, descriptors, _flags, _address = socket.recv_fds(connection, 1 << 16, 4)
    except OSError:
        os._exit(_GONE)
    if not message:
        os._exit(_GONE)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # received descriptors would stay open in an exec'ed program
    return message, descriptors


def _fork(launch: Any, request: dict[str, Any], descriptors: list[int], own: set[str]) -> None:
    """In the forked entry; returns only in the container's process that goes on as a Python program."""
    stdin, stdout, stderr, status = descriptors
    program: list[Program] = []

    class Become(BaseException):
        pass

    def child() -> NoReturn:
        spec = launch.read_container(f"{request['directory']}/spec.json")
        launch.standard_streams(stdin, stdout, stderr, tty=spec.tty)
        launch.reset_signals()
        launch.settle(spec, request, status)
        env = launch.prepare_environment(spec)
        launch.change_directory(spec.cwd)
        found = recognise(spec.args, env, spec.python, launch.find_program)
        for descriptor in (stdin, stdout, stderr):
            if descriptor > 2:
                os.close(descriptor)
        if found is None:
            launch.execute(spec.args, env)
        assert found is not None
        os.close(status)
        program.append(found)
        _fresh(env, own, keep=found.ours)
        raise Become

    # `launch.enter` ends the process on every exception but this one, which carries control back to the bottom of the stack
    launch.enter(launch.Entry(**request["entry"]), status, child, Become)
    program[0].run()


class Program:
    """A Python program: what the interpreter's command line would have run."""

    def __init__(self, kind: str, target: str, argv: list[str], *, unbuffered: bool) -> None:
        self.kind = kind
        self.target = target
        self.argv = argv
        self.unbuffered = unbuffered

    @property
    def ours(self) -> bool:
        """It runs a module of Sampan itself (a built-in stand-in)."""
        return self.kind == "module" and self.target.split(".")[0] == "sampan"

    def run(self) -> None:
        """Run it as ``__main__``; returns or raises as the program does."""
        _standard_files(self.unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")))
        for entry in reversed([entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]):
            sys.path.insert(0, entry)
        sys.argv = self.argv
        sys.orig_argv = [sys.executable, *self.argv]
        try:
            if self.kind == "module":
                sys.path.insert(0, os.getcwd())
                runpy.run_module(self.target, run_name="__main__", alter_sys=True)
                return
            main = types.ModuleType("__main__")
            main.__dict__["__builtins__"] = __builtins__
            sys.modules["__main__"] = main
            if self.kind == "script":
                sys.path.insert(0, str(Path(self.target).resolve().parent))
                main.__file__ = self.target
                source: bytes | str = Path(self.target).read_bytes()
                name = self.target
            else:
                sys.path.insert(0, "")
                source, name = self.target, "<string>"
            exec(compile(source, name, "exec"), main.__dict__)  # noqa: S102 - the program itself
        except SystemExit:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            trace = error.__traceback__
            while trace is not None and _ours(trace.tb_frame.f_code.co_filename):
                trace = trace.tb_next
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            raise SystemExit(1) from None


def _ours(filename: str) -> bool:
    return filename == str(_HERE) or filename == __file__ or "runpy" in filename


def recognise(args: tuple[str, ...], env: dict[str, str], interpreter: str, find: Any) -> Program | None:
    """The Python program that a command line runs with this interpreter, or None: exec it."""
    if not args or any(name in env for name in ("PYTHONHOME", "PYTHONHASHSEED", "PYTHONSTARTUP", "PYTHONOPTIMIZE")):
        return None
    file = find(args[0], env.get("PATH", ""))
    rest = list(args[1:])
    if not _same_interpreter(file, interpreter):
        line = _first_line(file)
        if not line.startswith("#!"):
            return None
        words = line[2:].split()
        if len(words) == 2 and words[0].endswith("/env"):
            words = [find(words[1], env.get("PATH", ""))]
        if len(words) != 1 or not _same_interpreter(words[0], interpreter):
            return None
        return Program("script", file, [file, *rest], unbuffered=False)
    unbuffered = False
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "-u":
            unbuffered = True
        elif option == "-m" and rest:
            return Program("module", rest[0], ["-m", *rest[1:]], unbuffered=unbuffered)
        elif option == "-c" and rest:
            return Program("text", rest[0], ["-c", *rest[1:]], unbuffered=unbuffered)
        elif option == "-um" and rest:
            return Program("module", rest[0], ["-m", *rest[1:]], unbuffered=True)
        else:
            return None
    if not rest or not os.path.isfile(rest[0]):
        return None
    return Program("script", rest[0], rest, unbuffered=unbuffered)


def _same_interpreter(file: str, interpreter: str) -> bool:
    if not interpreter or not os.path.basename(file).startswith("python"):
        return False
    if os.path.dirname(file) == os.path.dirname(interpreter):
        return os.path.realpath(file) == os.path.realpath(interpreter)
    # a venv's python is a link to the base one, but another program: its prefix differs
    return False


def _first_line(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            return opened.read(256).split(b"\n")[0].decode(errors="replace")
    except OSError:
        return ""


def _fresh(env: dict[str, str], own: set[str], *, keep: bool) -> None:
    """Make this process look freshly started: environment, random state, imported names."""
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    if not keep:
        for name in own:
            sys.modules.pop(name, None)
    else:
        for name in ("sampan", "sampan.parts", "sampan.parts.node", "sampan.kernel"):
            sys.modules.pop(name, None)  # the place-holders; the real packages are imported on demand
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # as an interpreter starts: it turns these into exceptions
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _standard_files(unbuffered: bool) -> None:
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = open(
            number, "w", encoding="utf-8", errors="backslashreplace" if number == 2 else "strict", closefd=False
        )
        file.reconfigure(line_buffering=number == 2 or os.isatty(number), write_through=unbuffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


if __name__ == "__main__":
    main()
