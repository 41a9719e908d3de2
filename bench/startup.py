"""How fast `sampan up` is ready, how much memory it holds, and what it burns while idle.

    python bench/startup.py [--runs 5]

Each run starts a fresh platform on a new data directory and free ports (cold: authority, store and kubeconfig are made), then
starts it again (warm). The peer is a bare Python process that only imports the libraries the core stands on, which nothing
built on them can beat.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SOURCE = Path(__file__).resolve().parents[1] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once, as an installation is
LIBRARIES = "import asyncio, aiohttp.web, uvloop, msgspec, prometheus_client, cryptography.x509, click"
IDLE_SECONDS = 5.0


def timed(*arguments: str) -> float:
    begin = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - begin


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=5)
    runs = options.parse_args().runs
    sampan = [sys.executable, "-m", "sampan"]
    cold, warm, floor = [], [], []
    memory = idle = 0.0
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            place = ["--data-dir", f"{folder}/data"]
            floor.append(timed(sys.executable, "-c", LIBRARIES))
            cold.append(timed(*sampan, "up", "--detach", "--ports", "auto", *place))
            timed(*sampan, "down", *place)
            warm.append(timed(*sampan, "up", "--detach", "--ports", "auto", *place))
            if run == runs - 1:
                core = psutil.Process(int((Path(folder) / "data/lock").read_text()))
                time.sleep(2)
                before = sum(core.cpu_times()[:2])
                time.sleep(IDLE_SECONDS)
                idle = (sum(core.cpu_times()[:2]) - before) / IDLE_SECONDS * 100
                memory = core.memory_info().rss / 1e6
            timed(*sampan, "down", *place)
    base = min(floor)
    print(f"{'':<34}{'best':>8}{'median':>8}{'x floor':>9}")
    for label, values in (
        ("import the libraries (floor)", floor),
        ("sampan up --detach, cold", cold),
        ("sampan up --detach, warm", warm),
    ):
        print(f"{label:<34}{min(values):>7.2f}s{statistics.median(values):>7.2f}s{min(values) / base:>9.1f}")
    print(f"core process: {memory:.0f} MB resident, {idle:.2f} % of a core while idle")


if __name__ == "__main__":
    main()
