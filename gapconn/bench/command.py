"""The three forms of `gapconn bench`, from a configuration file to an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
import trio

from gapconn import garbage
from gapconn.bench import report
from gapconn.bench.egress import StepBook, StepResult, receive_steps
from gapconn.bench.ingress import Step, send_steps
from gapconn.bench.plan import Plan, default_rates
from gapconn.config import Pair
from gapconn.egress import Egress
from gapconn.errors import ConfigError
from gapconn.logs import configure_logging
from gapconn.pair_file import load_pair
from gapconn.units import BitsPerSecond, Bytes

EXIT_FAILURE = 1
_ROOM_BYTES = 16 * 1024
"""A message has to hold a record and what is said about it."""


@contextlib.contextmanager
def _bench_pair(file: Path) -> Iterator[Pair]:
    """The link of `file` with a state directory of its own, without an admin endpoint, and without a log.

    Losses are what a bench looks for: they are in its table and need not be in a log.
    """
    pair = load_pair(file, os.environ, link_only=True)
    configure_logging(pair.log)  # else it would go to standard output
    logging.disable()
    try:
        with tempfile.TemporaryDirectory(prefix="gapconn-bench-") as directory:
            yield attrs.evolve(
                pair, link=attrs.evolve(pair.link, state_directory=directory), admin=None, repeat_buffer=None
            )
    finally:
        logging.disable(logging.NOTSET)


def run_ingress(file: Path, *, rates_bps: list[BitsPerSecond], step_s: float, size_bytes: Bytes) -> int:
    """Send the steps. Returns the exit code: 0 when it came to the end.

    Args:
        file: The pair's configuration.
        rates_bps: Of the steps; empty for those that suit the configured rate.
        step_s: Length of a step.
        size_bytes: Of a record.

    Raises:
        GapconnError: it cannot start, or cannot go on.
    """
    with _bench_pair(file) as pair:
        if size_bytes > pair.link.message_bytes_max - _ROOM_BYTES:
            raise ConfigError(["--size: must be at least 16 KiB less than link.message_bytes_max: a record must fit"])
        plan = Plan(rates_bps=rates_bps or default_rates(pair.link.rate_bps), step_s=step_s, size_bytes=size_bytes)
        click.echo(f"{report.about_link(pair.link)}\n{report.about_plan(plan)}")
        click.echo(f"announcing the link for {pair.link.interruption_timeout_s:g} s")
        click.echo(report.SENT_HEADING)

        def tell(step: Step) -> None:
            if step.sent is not None:
                click.echo(report.sent_line(step))

        garbage.settle()
        if trio.run(send_steps, pair, plan, tell):
            click.echo("done: the egress says what arrived")
            return 0
        click.echo("stopped before the last step")
        return EXIT_FAILURE


def run_egress(file: Path, *, as_json: bool) -> int:
    """Say what arrives, and which rate held. Returns the exit code: 0 when one did.

    Raises:
        GapconnError: it cannot start, or cannot go on.
    """

    def listening(egress: Egress) -> None:
        if as_json:
            click.echo(report.as_json({"listening": str(egress.socket.address)}))
            return
        where, granted_bytes = str(egress.socket.address), egress.socket.buffer_bytes
        click.echo(report.about_link(egress.pair.link))
        click.echo(report.about_egress(f"gapconn bench ingress {file.name}", where, granted_bytes, egress.pair.link))
        click.echo(report.ARRIVED_HEADING)

    def tell(result: StepResult) -> None:
        click.echo(report.as_json(report.step_facts(result)) if as_json else report.arrived_line(result))

    def note(text: str) -> None:
        click.echo(f"note: {text}", err=True)

    with _bench_pair(file) as pair:
        results: list[StepResult] = []

        async def receive() -> None:
            book = StepBook(tell)
            await receive_steps(pair, book, listening, note)
            results.extend(book.results)
            if book.strangers:
                note(f"{book.strangers:,} messages came from an ingress that is no bench: stop it first")

        garbage.settle()
        trio.run(receive)
        conclusion = report.conclude(results, pair.link)
        if as_json:
            click.echo(report.as_json(conclusion.facts()))
        else:
            click.echo("\n" + "\n".join(conclusion.advice))
        return 0 if conclusion.highest else EXIT_FAILURE
