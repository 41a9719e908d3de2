"""wget, nslookup and nc for shell boxes on hosts that lack them: the options tutorials use."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path


def wget(arguments: list[str]) -> int:
    """``wget [-q] [-O file|-] [-T seconds] [--spider] [-S] url``"""
    quiet = spider = False
    target, timeout, url = "", 30.0, ""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--spider":
            spider = True
        elif word.startswith("--timeout="):
            timeout = float(word.partition("=")[2])
        elif word.startswith("-") and not word.startswith("--"):
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter == "q":
                    quiet = True
                elif letter in "OTt":
                    value = letters or (rest.pop(0) if rest else "")
                    letters = ""
                    if letter == "O":
                        target = value
                    elif letter == "T":
                        timeout = float(value)
        elif not word.startswith("-"):
            url = word
    if not url:
        sys.stderr.write("wget: missing URL\n")
        return 1
    if "://" not in url:
        url = f"http://{url}"
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 - a user's own command
            body = response.read()
    except urllib.error.HTTPError as error:
        sys.stderr.write(f"wget: server returned error: HTTP/1.1 {error.code} {error.reason}\n")
        return 1
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError) or "timed out" in str(reason):
            sys.stderr.write("wget: download timed out\n")
        elif isinstance(reason, socket.gaierror):
            sys.stderr.write(f"wget: bad address '{url.split('/')[2]}'\n")
        else:
            words = getattr(reason, "strerror", None) or reason
            sys.stderr.write(f"wget: can't connect to remote host: {words}\n")
        return 1
    if spider:
        return 0
    if target == "-":
        sys.stdout.buffer.write(body)
        return 0
    name = target or url.rstrip("/").rpartition("/")[2]
    if not target and (not name or url.count("/") < 3):
        name = "index.html"
    Path(name).write_bytes(body)
    if not quiet:
        sys.stderr.write(f"'{name}' saved\n")
    return 0


def nslookup(arguments: list[str]) -> int:
    """``nslookup name``: the resolver's answers."""
    names = [word for word in arguments if not word.startswith("-")]
    if not names:
        sys.stderr.write("usage: nslookup HOST [DNS-SERVER]\n")
        return 1
    servers = [
        line.split()[1]
        for line in Path("/etc/resolv.conf").read_text().splitlines()
        if line.startswith("nameserver") and len(line.split()) > 1
    ]
    server = servers[0] if servers else "127.0.0.1"
    print(f"Server:\t\t{server}\nAddress:\t{server}:53\n")  # noqa: T201
    try:
        found = socket.getaddrinfo(names[0], None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        print(f"** server can't find {names[0]}: NXDOMAIN\n")  # noqa: T201
        return 1
    for address in dict.fromkeys(entry[4][0] for entry in found):
        print(f"Name:\t{names[0]}\nAddress: {address}")  # noqa: T201
    return 0


def nc(arguments: list[str]) -> int:
    """``nc [-z] [-v] [-w seconds] host port`` and ``nc -l -p port``"""
    zero = verbose = listen = False
    limit: float | None = None
    words: list[str] = []
    rest = list(arguments)
    port = ""
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and len(word) > 1:
            for letter in word[1:]:
                zero |= letter == "z"
                verbose |= letter == "v"
                listen |= letter == "l"
                if letter == "w":
                    limit = float(rest.pop(0))
                if letter == "p":
                    port = rest.pop(0)
        else:
            words.append(word)
    try:
        if listen:
            with socket.create_server(("0.0.0.0", int(port or words[-1]))) as server:  # noqa: S104
                connection, _ = server.accept()
        else:
            connection = socket.create_connection((words[0], int(words[1])), timeout=limit)
            if verbose or zero:
                sys.stderr.write(f"{words[0]} ({connection.getpeername()[0]}:{words[1]}) open\n")
            if zero:
                return 0
    except (OSError, IndexError) as error:
        sys.stderr.write(f"nc: {getattr(error, 'strerror', None) or error}\n")
        return 1

    def upwards() -> None:
        while data := os.read(0, 65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=upwards, daemon=True).start()
    while data := connection.recv(65536):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


def main() -> None:
    name, *arguments = sys.argv[1:]
    raise SystemExit({"wget": wget, "nslookup": nslookup, "nc": nc}[name](arguments))


if __name__ == "__main__":
    main()
