"""Run a keeper: ``python -m sampan.parts.node.runtime.keeper '<options as JSON>'``."""

from __future__ import annotations

import json
import sys

from sampan.parts.node.runtime.keeper.keeper import Keeper, Options

if __name__ == "__main__":
    Keeper(Options(**json.loads(sys.argv[1]))).run()
