"""Measurements in processes of their own, one after the other, with a fixed number of threads."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

TOOLS = ("scvae-ext", "scvi-tools")
MARK = "RESULT"


def installed_tools() -> list[str]:
    """Return the packages that can be measured here; the peer lives in an environment of its own."""
    found = []
    for tool in TOOLS:
        try:
            version(tool)
        except PackageNotFoundError:
            continue
        found.append(tool)
    return found


def report(row: dict[str, object]) -> None:
    """Hand a row to the process that started this one."""
    print(MARK + json.dumps(row), flush=True)


def measure(script: str, arguments: list[str], threads: int) -> dict[str, object]:
    """Run a script as a worker and return the row that it reports."""
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "NUMBA_NUM_THREADS": count}
    command = [sys.executable, script, *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in finished.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr[-3000:]}")
    row: dict[str, object] = json.loads(lines[-1].removeprefix(MARK))
    return row


def machine(threads: int) -> str:
    """Describe where the figures come from: threads, processor, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in (*installed_tools(), "torch"))
    return f"{threads} threads, {platform.machine()}, Python {platform.python_version()}, {versions}"
