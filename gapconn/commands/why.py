"""The command `gapconn why`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gapconn.commands.failures import EXIT_FAILURE, exit_on_wrong_configuration
from gapconn.commands.files import FILE

if TYPE_CHECKING:
    from gapconn.units import Address


def _address(_: click.Context, __: click.Parameter, value: str | None) -> Address | None:
    from gapconn.units import parse_address

    try:
        return None if value is None else parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@FILE
@click.option("--egress", "egress_at", metavar="HOST:PORT", callback=_address, help="Admin address of the egress.")
@click.option("--ingress", "ingress_at", metavar="HOST:PORT", callback=_address, help="Admin address of the ingress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def why(file: Path, egress_at: Address | None, ingress_at: Address | None, as_json: bool) -> None:
    """Say where data is lost, and what to do about it.

    FILE is the pair's configuration. The running ends are asked: the one whose admin address is in FILE (or in
    GAPCONN_ADMIN_LISTEN), and those that are named. One of them is enough; what cannot be seen then is said.

    Exit code 1 when neither end answers, or one that was named does not.

    \b
    Example:
      gapconn why pair.toml
      gapconn why pair.toml --egress 10.0.0.2:9464 --ingress 10.0.0.1:9464
    """
    from gapconn.pair_file import load_pair
    from gapconn.why import command

    with exit_on_wrong_configuration():
        pair = load_pair(file, os.environ, link_only=True)
    if pair.admin is None and egress_at is None and ingress_at is None:
        raise click.UsageError(
            f"{file} has no section [admin], so its ends answer nobody: add one and start them again, or name ends that"
            " have one by --egress and --ingress"
        )
    answer = command.ask(pair, egress_at=egress_at, ingress_at=ingress_at, cannot_resend=_cannot_resend(file))
    if as_json:
        click.echo(command.as_json(answer))
    else:
        for line in command.as_lines(answer, file):
            click.echo(line)
    if answer.in_vain or (answer.egress is None and answer.ingress is None):
        sys.exit(EXIT_FAILURE)


def _cannot_resend(file: Path) -> str | None:
    """What FILE says of that; None where it has no source that this host can read, as at an egress it need not."""
    from gapconn.config import Role
    from gapconn.errors import ConfigError
    from gapconn.pair_file import load_pair
    from gapconn.resend import cannot_resend

    try:
        pair = load_pair(file, os.environ, role=Role.INGRESS)
    except ConfigError:
        return None
    return cannot_resend(pair.source.type if pair.source else "", buffered=pair.repeat_buffer is not None) or ""
