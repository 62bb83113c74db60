"""The command `gapconn demo`."""

from __future__ import annotations

import sys

import click

from gapconn.commands.failures import EXIT_FAILURE
from gapconn.errors import GapconnError


@click.command()
@click.option("--kafka", metavar="HOST:PORT", help="Carry topics of this broker instead of generated records.")
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=20.0, show_default=True, help="About how long the demo runs."
)
def demo(kafka: str | None, seconds: float) -> None:
    """See a whole pair at work on this machine.

    Two processes, and a gap between them that loses and reorders. Needs no broker, no root and no container.

    \b
    Example:
      gapconn demo
      gapconn demo --kafka 127.0.0.1:9092
    """
    from gapconn.demo import run_demo

    try:
        sys.exit(run_demo(kafka=kafka, seconds=seconds))
    except GapconnError as error:
        click.secho(f"gapconn demo: {error}", fg="red", err=True)
        sys.exit(EXIT_FAILURE)
