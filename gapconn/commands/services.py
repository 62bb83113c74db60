"""How a command becomes a service, until it is told to stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gapconn.commands.failures import explain
from gapconn.commands.files import pair_of

if TYPE_CHECKING:
    from gapconn.config import Log, Pair

_Configuration = TypeVar("_Configuration")


def run_end(serve: Callable[[Pair], Awaitable[None]], file: Path, role: str) -> None:
    """Run one end of the pair until it stops, and exit with the code that tells how it ended."""
    pair = pair_of(file, role)
    run_service(serve, pair, log=pair.log, name=role)


def run_service(
    serve: Callable[[_Configuration], Awaitable[None]], configuration: _Configuration, *, log: Log, name: str
) -> None:
    """Run `serve(configuration)` until it stops; exit with the reason when it fails."""
    import trio

    from gapconn import garbage
    from gapconn.logs import configure_logging
    from gapconn.memory import keep_freed_memory

    configure_logging(log)
    keep_freed_memory()
    garbage.settle()
    try:
        trio.run(serve, configuration)
    except BaseException as error:  # the groups of Trio's nurseries may hold a KeyboardInterrupt beside others
        explain(error, name)
