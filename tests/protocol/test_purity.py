"""The core is pure: no clock, socket, thread, randomness or log, and nothing of gapconn that has one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gapconn.protocol

ALLOWED = {
    "__future__",
    "collections",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "struct",
    "typing",
    "attrs",
    "msgspec",
    "cryptography",
    "numpy",
    "xxhash",
    "lz4.block",
    "zstandard",
    "gapconn.errors",
    "gapconn.protocol",
    "gapconn.ranges",
}
"""Whatever else the core would like to import has to be added here, and so be thought about."""

BANNED_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}

MODULES = sorted(Path(gapconn.protocol.__path__[0]).rglob("*.py"))


def impurities(text: str) -> Iterator[str]:
    """What in the module reaches out of the core."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                imported = [module]
            case ast.ImportFrom():
                imported = ["a relative module"]
            case ast.Call(func=ast.Name(id=name)) if name in BANNED_CALLS:
                yield f"calls {name}"
                continue
            case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"):
                yield "uses numpy.random"
                continue
            case _:
                continue
        for name in imported:
            if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED):
                yield f"imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_the_core_reaches_for_nothing(module: Path) -> None:
    assert list(impurities(module.read_text())) == []


def test_all_of_the_core_is_looked_at() -> None:
    assert {"sender.py", "receiver.py", "wire.py", "states.py"} <= {module.name for module in MODULES}


@pytest.mark.parametrize(
    "text",
    [
        "import trio",
        "import socket",
        "import time",
        "from time import monotonic",
        "import os.path",
        "import random",
        "import logging",
        "import structlog",
        "import threading",
        "import asyncio",
        "from datetime import datetime",
        "import gapconn",
        "import gapconn.config",
        "from gapconn import errors",
        "from gapconn.record import Batch",
        "from gapconn.protocols import x",
        "from . import wire",
        "def f():\n    import socket",
        "if TYPE_CHECKING:\n    import trio",
        "print(1)",
        "open('/etc/passwd')",
        "__import__('socket')",
        "import numpy as np\nnp.random.default_rng()",
    ],
)
def test_what_is_impure_is_found(text: str) -> None:
    assert len(list(impurities(text))) == 1
