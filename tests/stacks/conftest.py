"""Stacks run one after the other, and what was measured is told at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.stacks.engine import ROOT, Stack, engine_trouble, running

FIGURES = ROOT / "build" / "stacks.json"
_measured: dict[str, dict[str, float]] = {}


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine that can run the stacks. Where there is none, `make stacks` fails and says why."""
    trouble = engine_trouble()
    if trouble is not None:
        pytest.fail(trouble, pytrace=False)


@pytest.fixture
def start(engine: None) -> Iterator[Callable[[str], Stack]]:
    """Starts a stack of compose/ by its name."""
    with ExitStack() as stacks:

        def start_one(name: str) -> Stack:
            stack = stacks.enter_context(running(name))
            _measured[name] = stack.figures
            return stack

        yield start_one


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _measured:
        return
    terminalreporter.section("stacks: seconds until data flowed again")
    for name, figures in _measured.items():
        for what, value in figures.items():
            terminalreporter.write_line(f"{name:13} {what:40} {value:10g}")
    FIGURES.parent.mkdir(exist_ok=True)
    Path(FIGURES).write_text(json.dumps(_measured, indent=2) + "\n")
