"""The commands of `gapconn bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gapconn.commands.failures import EXIT_FAILURE, EXIT_USAGE, leaves, print_problems
from gapconn.commands.files import FILE
from gapconn.errors import ConfigError, GapconnError

if TYPE_CHECKING:
    from gapconn.units import BitsPerSecond, Bytes


@click.group()
def bench() -> None:
    """Measure what rate a link holds without loss.

    Source and sink are replaced: the ingress generates self-checking records at several rates, one after the other,
    and the egress prints what became of them, and which rate to configure. Nothing else of the file is changed: MTU,
    error correction, security and buffers are measured as they are.

    The two must not run beside the link's own ingress and egress. They use a state directory of their own, which is
    removed at the end: the state of the link is not touched. The admin endpoint is off.

    \b
    Example:
      gapconn bench egress pair.toml      on the destination host, first
      gapconn bench ingress pair.toml     on the source host
      gapconn bench local pair.toml       both on this host, over the loopback
    """


def _rates(_: click.Context, __: click.Parameter, value: str | None) -> list[int]:
    from gapconn.units import parse_rate

    rates: list[int] = []
    for text in (value or "").split(",") if value else []:
        try:
            rate = parse_rate(text.strip())
        except ValueError as error:
            raise click.BadParameter(f'{text.strip()!r}: {error}; such as "500 Mbit/s, 1 Gbit/s"') from error
        if rate < 9600:
            raise click.BadParameter(f'{text.strip()!r}: a rate to try is at least "9600 bit/s"')
        rates.append(rate)
    return rates


def _size(_: click.Context, __: click.Parameter, value: str) -> int:
    from gapconn.units import parse_bytes

    try:
        size = parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(f'{value!r}: {error}; such as "64 KiB"') from error
    if size < 16:
        raise click.BadParameter("a record has at least 16 bytes")
    return size


def _plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that sends the steps of a bench."""
    options = (
        click.option(
            "--rates",
            metavar="RATE,...",
            callback=_rates,
            help='The rates to try, such as "500 Mbit/s, 1 Gbit/s".  [default: 25 % to 300 % of link.rate]',
        ),
        click.option(
            "--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Length of a step."
        ),
        click.option(
            "--size", metavar="SIZE", callback=_size, default="64 KiB", show_default=True, help="Size of a record."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


_JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")


@bench.command("ingress")
@FILE
@_plan_options
def bench_ingress(file: Path, rates: list[BitsPerSecond], seconds: float, size: Bytes) -> None:
    """Send records at several rates, one after the other.

    FILE is the pair's configuration. Start the egress of the bench first: nobody tells an ingress that it is not heard.

    \b
    Example:
      gapconn bench ingress pair.toml
      gapconn bench ingress pair.toml --rates "2 Gbit/s, 3 Gbit/s" --seconds 60
    """
    from gapconn.bench.command import run_ingress

    _bench(lambda: run_ingress(file, rates_bps=rates, step_s=seconds, size_bytes=size))


@bench.command("egress")
@FILE
@_JSON_LINES
def bench_egress(file: Path, as_json: bool) -> None:
    """Say what arrives at each rate, and which one held.

    FILE is the pair's configuration. It ends behind the last step, or when the ingress was silent for some seconds.

    Exit code 0 when a rate held, 1 when none did or nothing was heard.

    \b
    Example:
      gapconn bench egress pair.toml
    """
    from gapconn.bench.command import run_egress

    _bench(lambda: run_egress(file, as_json=as_json))


@bench.command("local")
@FILE
@_plan_options
@_JSON_LINES
def bench_local(file: Path, rates: list[BitsPerSecond], seconds: float, size: Bytes, as_json: bool) -> None:
    """Run both ends on this host: what its CPUs can do, without the gap.

    The two ends share this host, and the address of the link is replaced by one of the loopback.

    \b
    Example:
      gapconn bench local pair.toml
    """
    from gapconn.bench.local import run_local

    options = ["--seconds", str(seconds), "--size", str(size)]
    if rates:
        options += ["--rates", ",".join(map(str, rates))]
    _bench(lambda: run_local(file, ingress_options=options, egress_options=["--json"] if as_json else []))


def _bench(run: Callable[[], int]) -> None:
    """Run a form of the bench, and exit with its code."""
    try:
        code = run()
    except ConfigError as error:
        print_problems(error.problems)
        code = EXIT_USAGE
    except KeyboardInterrupt:
        code = EXIT_FAILURE
    except BaseException as error:
        known = [cause for cause in leaves(error) if isinstance(cause, GapconnError)]
        if not known:
            raise
        print_problems([str(cause) for cause in known])
        code = EXIT_FAILURE
    sys.exit(code)
