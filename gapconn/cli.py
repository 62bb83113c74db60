"""The command `gapconn`.

Exit codes: 0 a clean end, 1 a failure at run time, 2 a wrong configuration or usage. Messages go to standard error.
What a command needs is imported inside it, so that `gapconn --version` does not load a Kafka client.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from gapconn import __version__
from gapconn.errors import ConfigError, GapconnError

if TYPE_CHECKING:
    from gapconn.config import Pair, Role

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
GARBAGE_THRESHOLD: Final = 100_000
"""So many more objects than before make the cyclic collector look at the young ones (Python: 700)."""

_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gapconn", message="%(prog)s %(version)s")
def main() -> None:
    """Carry Kafka topics, UDP, TCP and files across a one-way network gap.

    One TOML file describes a link pair and is read by both ends. An ingress has exactly one egress, and an egress
    exactly one ingress.

    \b
    Example:
      gapconn check pair.toml      before anything else
      gapconn egress pair.toml     on the destination side
      gapconn ingress pair.toml    on the source side
      gapconn demo                 see it work, on this machine

    Every key of the file can be overridden by an environment variable GAPCONN_<SECTION>_<KEY>, for example
    GAPCONN_LINK_RATE="2 Gbit/s".

    Exit codes: 0 clean end, 1 failure at run time, 2 wrong configuration or usage.
    """


@main.command()
@click.argument("file", type=_PATH)
def ingress(file: Path) -> None:
    """Take data from the source and send it into the gap.

    FILE is the pair's configuration; its section [source] is read here. SIGTERM or SIGINT ends it cleanly: what was
    taken is sent, and acknowledged to the source.

    \b
    Example:
      gapconn ingress pair.toml
    """
    from gapconn.config import Role
    from gapconn.service import serve_ingress

    _serve(serve_ingress, file, Role.INGRESS)


@main.command()
@click.argument("file", type=_PATH)
def egress(file: Path) -> None:
    """Receive from the gap and hand the data to the sink.

    FILE is the pair's configuration; its section [sink] is read here. SIGTERM or SIGINT ends it cleanly: what arrived
    whole is handed to the sink.

    When both ends run on one host and the file has a section [admin], one of them needs another port.

    \b
    Example:
      gapconn egress pair.toml
      GAPCONN_ADMIN_LISTEN=127.0.0.1:9465 gapconn egress pair.toml
    """
    from gapconn.config import Role
    from gapconn.service import serve_egress

    _serve(serve_egress, file, Role.EGRESS)


@main.command()
@click.argument("files", metavar="FILE...", type=_PATH, nargs=-1, required=True)
@click.option(
    "--role",
    type=click.Choice(["ingress", "egress"]),
    help="Read the files as this end does: the other end's section, its plugins and its secrets need not exist.",
)
@click.option(
    "--separate-hosts",
    is_flag=True,
    help="Every end has a host or container of its own, so ports and directories may be the same.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(files: tuple[Path, ...], role: str | None, separate_hosts: bool, as_json: bool) -> None:
    """Check configurations, and say what they do.

    Several files are those of pairs that run at the same time. Two ingresses on one egress, one ingress for two
    egresses, and pairs that share a name, an id, an address or a source are refused.

    \b
    Example:
      gapconn check pair.toml
      gapconn check links/*.toml
    """
    from gapconn.check import check as check_files
    from gapconn.check import facts, summary
    from gapconn.config import Role

    report = check_files(files, os.environ, role=Role(role) if role else None, separate_hosts=separate_hosts)
    if as_json:
        pairs = [{"file": str(path), **facts(pair)} for path, pair in report.pairs]
        click.echo(json.dumps({"ok": not report.problems, "problems": report.problems, "pairs": pairs}, indent=2))
    elif report.problems:
        _print_problems(report.problems)
    else:
        for path, pair in report.pairs:
            click.echo(f"{path}: " + click.style("ok", fg="green"))
            for line in summary(pair):
                click.echo(f"  {line}")
    if report.problems:
        sys.exit(EXIT_USAGE)


@main.command()
@click.argument("file", type=_PATH)
@click.option("--add", is_flag=True, help="Put a further key into FILE. Nothing is sealed with it yet.")
@click.option("--use", "use_id", metavar="ID", type=int, help="From now on the ingress seals with key ID.")
@click.option("--remove", "remove_id", metavar="ID", type=int, help="Take key ID out of FILE.")
@click.option("--show", is_flag=True, help="Only show the ids and fingerprints of the keys in FILE.")
def keygen(file: Path, add: bool, use_id: int | None, remove_id: int | None, show: bool) -> None:
    """Make a key file for a sealed link, or change one.

    Without an option FILE is made anew, with mode 0600; a file that exists is left as it is. Both ends need the file:
    carry it to the other one by hand, and compare the fingerprints. Secrets are never shown.

    To change the key without a stop: --add, carry FILE to the egress, then --use the new id at the ingress, then
    --remove the old one at both. Running ends notice the change within two seconds.

    \b
    Example:
      gapconn keygen orders.key
      gapconn keygen --add orders.key
      gapconn keygen --use 2 orders.key
      gapconn keygen --remove 1 orders.key
    """
    from gapconn import keys

    if sum((add, use_id is not None, remove_id is not None, show)) > 1:
        raise click.UsageError("only one of --add, --use, --remove and --show at a time")
    try:
        if add:
            keys.add(file)
        elif use_id is not None:
            keys.use(file, use_id)
        elif remove_id is not None:
            keys.remove(file, remove_id)
        elif not show:
            keys.create(file)
        found = keys.load_keys(file)
    except ConfigError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_USAGE)
    for key_id, fingerprint in keys.overview(found).items():
        click.echo(f"key {key_id:3}  {fingerprint}" + ("  in use" if key_id == found.use else ""))


@main.command()
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


def _serve(serve: Callable[[Pair], Awaitable[None]], file: Path, role: Role) -> None:
    """Run one end until it stops, and exit with the code that tells how it ended."""
    import trio

    from gapconn.config import load_pair
    from gapconn.logs import configure_logging
    from gapconn.memory import keep_freed_memory

    try:
        pair = load_pair(file, os.environ, role=role)
    except ConfigError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_USAGE)
    configure_logging(pair.log)
    keep_freed_memory()
    # What is loaded by now stays to the end. Without it, a full collection takes a millisecond instead of thirty.
    gc.collect()
    gc.freeze()
    try:
        trio.run(serve, pair)
    except BaseException as error:  # the groups of Trio's nurseries may hold a KeyboardInterrupt beside others
        _explain(error, role)


def _explain(error: BaseException, role: Role) -> NoReturn:
    """Say why an end failed, in one line if it failed for a reason that it knows; then exit."""
    import structlog

    log = structlog.get_logger().bind(end=role.value)
    causes = list(_leaves(error))
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


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What happened, without the groups that nurseries put around it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _print_problems(problems: list[str]) -> None:
    for problem in problems:
        click.echo(f"{click.style('error:', fg='red')} {problem}", err=True)
