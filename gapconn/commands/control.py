"""The commands `gapconn pause`, `gapconn resume` and `gapconn monitor`: the ingress is told when to work."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gapconn.commands.failures import EXIT_FAILURE, exit_on_wrong_configuration, leaves
from gapconn.commands.files import FILE, pair_of
from gapconn.errors import ConfigError, GapconnError

if TYPE_CHECKING:
    from gapconn.config import Pair


@click.command()
@FILE
@click.option("--reason", default="by gapconn pause", show_default=True, help="Why; others see it in /status.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0, max=30), default=20.0, show_default=True,
    help="How many seconds to wait until the source is at rest.",
)  # fmt: skip
def pause(file: Path, reason: str, wait_s: float) -> None:
    """Have a running ingress take nothing more from its source.

    It sends what it holds, commits, and leaves its consumer group, so that Kafka gives its partitions to another pair.
    Its heartbeats go on. It stays paused over restarts, until `gapconn resume`; no monitor resumes it.

    FILE is the pair's configuration, with [admin] listen and token_file. Run this on the ingress's host.

    \b
    Example:
      gapconn pause pair.toml --reason "new disk in the egress's host"
    """
    answer = _post(file, "/pause", {"reason": reason, "wait_s": wait_s}, timeout_s=wait_s + 10)
    click.echo("paused" if answer["at_rest"] else "pausing: it still sends what it holds")
    _tell_holds(answer)


@click.command()
@FILE
@click.option("--all", "everybody", is_flag=True, help="Also what monitors hold; one that still wants it holds again.")
def resume(file: Path, everybody: bool) -> None:
    """Have a paused ingress work again.

    Takes away the hold of `gapconn pause`. What a monitor holds stays held, because its egress is dead, unless --all.

    \b
    Example:
      gapconn resume pair.toml
    """
    answer = _post(file, "/resume", {"all": everybody}, timeout_s=30)
    if answer["holds"]:
        click.echo("still paused")
        _tell_holds(answer)
    else:
        click.echo("resumed" if answer["released"] else "it was not paused")


def _tell_holds(answer: Mapping[str, Any]) -> None:
    for hold in answer["holds"]:
        click.echo(f"  held by {hold['owner']} for {hold['for_s']:.0f} s: {hold['reason']}")


def _post(file: Path, path: str, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Have the running ingress of `file` do something; exits with the reason when it does not."""
    import trio

    from gapconn.admin.client import AdminClient, NoAnswerError
    from gapconn.admin.token import load_token

    pair = pair_of(file, "ingress")
    with exit_on_wrong_configuration():
        url, token_file = _endpoint(file, pair)
        token = load_token(token_file)

    async def request() -> dict[str, Any]:
        async with AdminClient(url, token=token, timeout_s=timeout_s) as client:
            return await client.post(path, body)

    try:
        return trio.run(request)
    except NoAnswerError as error:
        click.secho(f"gapconn {path[1:]}: {error}; does the ingress run, and at admin.listen?", fg="red", err=True)
        sys.exit(EXIT_FAILURE)
    except GapconnError as error:
        click.secho(f"gapconn {path[1:]}: {error}", fg="red", err=True)
        sys.exit(EXIT_FAILURE)


def _endpoint(file: Path, pair: Pair) -> tuple[str, Path]:
    admin = pair.admin
    if admin is None or not admin.token_file:
        missing = "missing: without it nobody can control the ingress; name a token file there, and restart the ingress"
        raise ConfigError([f"{file}: admin.token_file: {missing}"])
    if admin.listen.port == 0:
        raise ConfigError([f"{file}: admin.listen: port 0 is another one at each start: nobody knows where to ask"])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(admin.listen.host, admin.listen.host)
    return f"http://{type(admin.listen)(host, admin.listen.port)}", Path(admin.token_file)


@click.command()
@FILE
@click.option("--check", is_flag=True, help="Only read FILE and say what is wrong with it.")
def monitor(file: Path, check: bool) -> None:
    """Watch pairs over the management network, and pause an ingress whose egress is dead.

    FILE is a configuration of its own: docs/high-availability.md. Any number of monitors may watch the same pairs. A
    monitor that ends changes nothing.

    \b
    Example:
      gapconn monitor monitor.toml
    """
    import trio

    from gapconn.logs import configure_logging
    from gapconn.monitor.config import load_monitor
    from gapconn.monitor.service import serve_monitor

    with exit_on_wrong_configuration():
        settings = load_monitor(file, os.environ)
    if check:
        click.echo(f"{file}: {click.style('ok', fg='green')}")
        for pair in settings.pairs:
            click.echo(f"  {pair.name}: ingress {pair.ingress or 'not watched'}, egress {pair.egress}")
        return
    configure_logging(settings.log)
    try:
        trio.run(serve_monitor, settings)
    except BaseException as error:
        known = [cause for cause in leaves(error) if isinstance(cause, GapconnError)]
        if not known:
            raise
        for cause in known:
            click.secho(f"gapconn monitor: {cause}", fg="red", err=True)
        sys.exit(EXIT_FAILURE)
