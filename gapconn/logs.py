"""What the processes log, on standard error: standard output may be a sink.

Everything goes one way, the messages of gapconn (structlog) and those of libraries (the standard library's logging), so
that a log has one format. Values bound by `structlog.contextvars` (`link`, `task`) appear in both.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from gapconn.config import Log

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_EVENT_COLUMNS: Final = 22


def configure_logging(log: Log) -> None:
    """Log as `[log]` says, from now on, to the present `sys.stderr`. May be called again."""
    terminal = sys.stderr.isatty()
    console = log.format == "console" or (log.format == "auto" and terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[log.level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _name_of_library],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_for_people(colors=terminal and not os.environ.get("NO_COLOR")) if console else _for_programs()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[log.level])
    logging.captureWarnings(True)


# The usual renderers of tracebacks show the values of variables, and a variable may hold a password.


def _for_people(*, colors: bool) -> list[Processor]:
    return [
        _circumstances_last,
        structlog.dev.ConsoleRenderer(
            colors=colors,
            exception_formatter=structlog.dev.plain_traceback,
            sort_keys=False,
            pad_event_to=_EVENT_COLUMNS,
        ),
    ]


def _for_programs() -> list[Processor]:
    return [structlog.processors.format_exc_info, _most_important_first, structlog.processors.JSONRenderer(default=str)]


def _name_of_library(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event


def _circumstances_last(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What hardly changes from line to line comes behind what the event is about."""
    behind = {key: event.pop(key) for key in ("task", "link") if key in event}
    return {**event, **behind}


def _most_important_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**{key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}, **event}
