"""Generate ``src/sampan/kube/types/protobuf.bin`` from ``tools/protobuf_fields.txt``.

Layout: zlib of a JSON object from ``package.Message`` to its fields, each ``[number, json name, type, flags]``; message types
are written in full, so that the decoder needs no notion of packages.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

SOURCE = Path(__file__).parent / "protobuf_fields.txt"
TARGET = Path(__file__).parent.parent / "src/sampan/kube/types/protobuf.bin"
SCALARS = {"s", "b", "i", "d", "B", "Q", "IS", "T", "MT", "DU", "RX", "F1", "-"}
Field = tuple[int, str, str, str]


def read(text: str) -> dict[str, list[Field]]:
    """Messages by full name."""
    messages: dict[str, list[Field]] = {}
    package = ""
    lines = [line for line in text.splitlines() if line and not (line.startswith("#") and not line.startswith("## "))]
    for line in lines:
        if line.startswith("## "):
            package = line[3:].strip()
            continue
        name, _, rest = line.partition(":")
        messages[f"{package}.{name}"] = [field(text, package) for text in rest.split(";") if text.strip()]
    known = set(messages) | SCALARS
    for name, fields in messages.items():
        for entry in list(fields):
            kind = entry[2]
            base = kind.removeprefix("M:").removeprefix("W").removeprefix("[]")
            if base not in known or kind.startswith("M:[]"):
                # Fields of API groups that are not served, which the decoder then skips.
                sys.stdout.write(f"left out: {name}.{entry[1]} ({kind})\n")
                fields.remove(entry)
    return messages


def field(text: str, package: str) -> Field:
    """One field, its message type written in full."""
    number, label, kind = text.split(maxsplit=2)
    base = kind.rstrip("?!")
    flags = kind[len(base) :]
    if label.startswith("~"):
        label, flags = "", "~"
    if label == "-":
        label, base = "", "-"
    prefix = next((mark for mark in ("M:W[]", "M:[]", "W[]", "[]", "M:") if base.startswith(mark)), "")
    inner = base[len(prefix) :]
    if inner not in SCALARS and inner.count(".") == 0:
        inner = f"{package}.{inner}"
    return int(number), label, prefix + inner, flags


def main() -> None:
    messages = read(SOURCE.read_text())
    encoded = json.dumps(messages, separators=(",", ":"), sort_keys=True).encode()
    TARGET.write_bytes(zlib.compress(encoded, 9))
    sys.stdout.write(f"{len(messages)} messages, {len(encoded)} bytes, {TARGET.stat().st_size} in {TARGET.name}\n")


if __name__ == "__main__":
    main()
