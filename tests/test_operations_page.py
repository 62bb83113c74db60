"""The operator's pages have every event that the program logs, and every metric that it shows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gapconn"
PAGES = ("operations.md", "dedup.md", "high-availability.md")
PAGE = "".join((ROOT / "docs" / name).read_text() for name in PAGES)

# Where the name of an event is the argument of this number. `debug` is for developers and not on the page.
LOGGING = {"info": 0, "warning": 0, "error": 0, "exception": 0, "critical": 0, "warn": 0}
TELLING = {"tell": 1, "_tell": 1, "_gather": 1, "_note": 0, "_give_up": 0, "_lose": 0}
NOT_IN_SERVICE = ("demo", "testing")


def texts(node: ast.AST) -> set[str]:
    """The texts that an expression may be: a constant, or one of two."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def events_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            place = {**LOGGING, **TELLING}.get(node.func.attr)
            if place is not None and place < len(node.args):
                yield from texts(node.args[place])
        elif isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["event"]:
            yield from texts(node.value)


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in NOT_IN_SERVICE]
EVENTS = {event for path in MODULES for event in events_of(path)}
METRICS = {
    text
    for path in (*sorted((PACKAGE / "admin").glob("*.py")), *sorted((PACKAGE / "monitor").glob("*.py")))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("gauge", "gauges", "counter", "counters")
    for text in texts(node.args[0])
}


def test_the_names_are_found() -> None:
    assert {
        "ingress_started", "source_ended", "link_interrupted", "messages_lost", "partition_missing", "commit_failed",
        "wrong_hash", "admin_request_failed",
    } <= EVENTS  # fmt: skip
    assert {"gapconn_healthy", "gapconn_link_up", "gapconn_send_stalls_total"} <= METRICS


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_the_event_is_on_the_page(event: str) -> None:
    assert f"`{event}`" in PAGE


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_metric_is_on_the_page(metric: str) -> None:
    assert f"`{metric}`" in PAGE
