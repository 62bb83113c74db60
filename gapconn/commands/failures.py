"""How a command fails: the exit code, and what it says on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import click

from gapconn.errors import ConfigError, GapconnError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2


@contextmanager
def exit_on_wrong_configuration() -> Iterator[None]:
    """Say what is wrong with a configuration, and exit."""
    try:
        yield
    except ConfigError as error:
        print_problems(error.problems)
        sys.exit(EXIT_USAGE)


@contextmanager
def exit_on_failure(command: str) -> Iterator[None]:
    """Say in lines why the command failed, and exit."""
    from gapconn.bundle import BundleError

    try:
        yield
    except BundleError as error:
        print_problems(error.problems)
        sys.exit(EXIT_USAGE)
    except (GapconnError, OSError) as error:
        click.secho(f"gapconn {command}: {error}", fg="red", err=True)
        sys.exit(EXIT_FAILURE)


def explain(error: BaseException, end: str) -> NoReturn:
    """Say why an end failed, in one line if it failed for a reason that it knows; then exit."""
    import structlog

    log = structlog.get_logger().bind(end=end)
    causes = list(leaves(error))
    known = [cause for cause in causes if isinstance(cause, GapconnError)]
    unknown = [cause for cause in causes if not isinstance(cause, GapconnError | KeyboardInterrupt)]
    for message in dict.fromkeys(str(cause) for cause in known):
        log.error("stopped_by_failure", reason=message)
    if unknown:
        log.error("stopped_by_bug", what="a bug in gapconn or in a plugin; please report it", exc_info=error)
    elif not known:
        log.error("stopped_by_interrupt", what="interrupted before it could stop cleanly")
    only_configuration = all(isinstance(cause, ConfigError) for cause in causes)
    sys.exit(EXIT_USAGE if only_configuration else EXIT_FAILURE)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What happened, without the groups that nurseries put around it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def print_problems(problems: list[str]) -> None:
    for problem in problems:
        click.echo(f"{click.style('error:', fg='red')} {problem}", err=True)
