"""One log on standard error: for people on a terminal, as JSON lines otherwise, without secrets in tracebacks."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gapconn.config import Log
from gapconn.logs import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The process's logging is as it was before, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def configure(monkeypatch: pytest.MonkeyPatch, log: Log, *, terminal: bool = False) -> io.StringIO:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logging(log)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_when_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = configure(monkeypatch, Log())
    structlog.get_logger().bind(link="orders", task="sender").info("gap_detected", messages=3, peer=b"x")
    (event,) = lines(stream)
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", event.pop("timestamp"))
    assert event == {
        "level": "info",
        "event": "gap_detected",
        "messages": 3,
        "peer": "b'x'",
        "link": "orders",
        "task": "sender",
    }


def test_readable_and_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = configure(monkeypatch, Log(), terminal=True)
    structlog.get_logger().warning("link_interrupted", link="orders")
    assert "\x1b[" in stream.getvalue()
    assert "link_interrupted" in stream.getvalue()


def test_on_the_console_the_facts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = configure(monkeypatch, Log(format="console"))
    log = structlog.get_logger().bind(link="orders", task="sender")
    log.warning("messages_lost", epoch=3, count=2, cause="gap")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d \[warning *\] messages_lost +epoch=3 count=2 cause=gap task=sender link=orders\n",
        stream.getvalue(),
    )


def test_no_colour_when_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = configure(monkeypatch, Log(format="console"))
    structlog.get_logger().info("started")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    configure_logging(Log())
    structlog.get_logger().info("started")
    for text in (stream.getvalue(), terminal.getvalue()):
        assert "started" in text
        assert "\x1b[" not in text
        assert not text.startswith("{")


def test_json_on_a_terminal_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = configure(monkeypatch, Log(format="json"), terminal=True)
    structlog.get_logger().info("started")
    assert lines(stream)[0]["event"] == "started"


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_level(monkeypatch: pytest.MonkeyPatch, level: Any, expected: list[str]) -> None:
    stream = configure(monkeypatch, Log(level=level))
    for log in (structlog.get_logger(), logging.getLogger("library")):
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)("happened")
    assert [event["level"] for event in lines(stream)] == expected * 2


def test_libraries_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = configure(monkeypatch, Log())
    with structlog.contextvars.bound_contextvars(link="orders", task="source"):
        logging.getLogger("rdkafka").warning("broker %s is away", "k:9092", extra={"code": -195})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    event, warning = lines(stream)
    del event["timestamp"]
    assert event == {
        "level": "warning",
        "event": "broker k:9092 is away",
        "link": "orders",
        "task": "source",
        "code": -195,
        "logger": "rdkafka",
    }
    assert "old" in warning["event"]


@pytest.mark.parametrize("log", [Log(format="json"), Log(format="console")])
def test_tracebacks_do_not_show_the_values_of_variables(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    stream = configure(monkeypatch, log)

    def fail(password: str) -> None:
        raise RuntimeError(f"failed with a password of {len(password)} characters")

    try:
        fail("".join(["hunt", "er2"]))
    except RuntimeError:
        structlog.get_logger().exception("stopped_by_bug")
        logging.getLogger("library").exception("library failed")
    assert stream.getvalue().count("RuntimeError: failed with a password of 7 characters") == 2
    assert "hunter2" not in stream.getvalue()


def test_configuring_again_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    first = configure(monkeypatch, Log())
    second = configure(monkeypatch, Log(level="error"))
    structlog.get_logger().error("happened")
    logging.getLogger("library").error("happened")
    assert (first.getvalue(), len(lines(second))) == ("", 2)
