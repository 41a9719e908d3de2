"""Generate ``*_pb2.py`` and ``*_pb2.pyi`` from our own ``.proto`` files under ``src/sampan/proto``.

Run it after changing a schema (needs the ``build`` extra) and commit what it writes::

    python tools/generate_protos.py [name ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
PROTOS = SOURCE / "sampan" / "proto"


def main(names: list[str]) -> None:
    files = [PROTOS / f"{name}.proto" for name in names] or sorted(PROTOS.glob("*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{SOURCE}",
            f"--python_out={SOURCE}",
            f"--pyi_out={SOURCE}",
            *map(str, files),
        ],
        check=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
