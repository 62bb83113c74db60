"""On what something was measured: figures of different machines cannot be compared, ratios a little."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "trio", "msgspec", "xxhash", "confluent-kafka", "cryptography", "pyeclib")


def facts() -> dict[str, Any]:
    """Hardware, kernel, interpreter, libraries, and how busy the machine is."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "cpu": _line("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "load_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "rmem_max_bytes": int(Path("/proc/sys/net/core/rmem_max").read_text()),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _line(file: str, key: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str:
    with contextlib.suppress(OSError):
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if described.returncode == 0:
            return described.stdout.strip()
    return "unknown"
