"""The command `gapconn`.

Exit codes: 0 a clean end, 1 a failure at run time, 2 a wrong configuration or usage. Messages go to standard error.
What a command needs is imported inside it, so that `gapconn --version` does not load a Kafka client.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import click

from gapconn import __version__
from gapconn.control_commands import monitor, pause, resume
from gapconn.errors import ConfigError, GapconnError

if TYPE_CHECKING:
    from gapconn.config import Pair, Role
    from gapconn.units import BitsPerSecond, Bytes

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2

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
      gapconn dedup dedup.toml     one copy of what redundant links bring
      gapconn demo                 see it work, on this machine
      gapconn bench --help         measure what rate the link holds

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


main.add_command(pause)
main.add_command(resume)
main.add_command(monitor)


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


@main.group()
def gaps() -> None:
    """What the egress misses: list it, carry it to the source side, close it.

    FILE is the pair's configuration, on the egress's host and as the user that runs the egress: the journal is in
    link.state_directory. All of this works while the egress runs, and while it does not.

    \b
    Example:
      gapconn gaps list pair.toml
      gapconn gaps export pair.toml --output gaps.json     for: gapconn resend pair.toml --gaps gaps.json
      gapconn gaps close pair.toml 3 4 --reason "sent by mail"
    """


_ENTRIES = click.argument("numbers", metavar="[ENTRY...]", type=click.IntRange(min=1), nargs=-1)


@gaps.command("list")
@click.argument("file", type=_PATH)
@click.option("--all", "closed", is_flag=True, help="Closed entries too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a row for each range.")
def gaps_list(file: Path, closed: bool, as_json: bool, as_csv: bool) -> None:
    """What is missing, the oldest first."""
    from gapconn import gaps as room
    from gapconn.store.journal import facts

    with _told("gaps list"):
        entries = room.entries_of(_pair_of(file, "egress"), closed=closed)
    if as_json:
        click.echo(json.dumps([facts(entry) for entry in entries], indent=2, ensure_ascii=False))
    elif as_csv:
        click.echo(room.as_csv(entries), nl=False)
    else:
        for line in room.table(entries):
            click.echo(line)
        click.echo(f"{sum(entry.open for entry in entries)} open", err=True)


@gaps.command("export")
@click.argument("file", type=_PATH)
@_ENTRIES
@click.option("--output", "-o", type=_PATH, help="Write to this file; .png and .svg make a picture of a QR code.")
@click.option(
    "--format", "form", type=click.Choice(["json", "text", "qr"]),
    help="JSON to be copied, text of short lines to be typed, or a QR code.  [default: by the output, else json]",
)  # fmt: skip
def gaps_export(file: Path, numbers: tuple[int, ...], output: Path | None, form: str | None) -> None:
    """Write the list of what is missing, for `gapconn resend` at the source side.

    Each line of the text has a check of its own: a mistake made in typing it is named with its line. Without ENTRY all
    open entries are exported.
    """
    from gapconn import gaps as room

    pair = _pair_of(file, "egress")
    picture = output is not None and output.suffix.lower() in (".png", ".svg")
    form = form or ("qr" if picture else "text" if output is not None and output.suffix == ".txt" else "json")
    if form == "qr" and output is not None and not picture:
        raise click.UsageError("a QR code is written to a .png or an .svg file, or without --output to the terminal")
    with _told("gaps export"):
        entries = room.entries_of(pair, closed=False)
        entries = [entry for entry in entries if not numbers or entry.number in numbers]
        if form == "qr":
            code = room.qr_code(pair, entries)
            if output is None:
                code.terminal(compact=True)
            else:
                code.save(str(output), scale=6)
        elif output is None:
            click.echo(room.exported(pair, entries, form), nl=False)
        else:
            output.write_text(room.exported(pair, entries, form), encoding="utf-8")


@gaps.command("close")
@click.argument("file", type=_PATH)
@_ENTRIES
@click.option("--all", "everything", is_flag=True, help="All open entries.")
@click.option("--reason", required=True, help="Why; it stays in the journal.")
def gaps_close(file: Path, numbers: tuple[int, ...], everything: bool, reason: str) -> None:
    """Close entries that nobody needs any more, or that cannot be sent again."""
    from gapconn import gaps as room

    if bool(numbers) == everything:
        raise click.UsageError("name the entries to close, or give --all")
    pair = _pair_of(file, "egress")
    with _told("gaps close"):
        entries = room.entries_of(pair, closed=True)
        wanted = [entry.number for entry in entries if entry.open] if everything else list(numbers)
        unknown = set(wanted) - {entry.number for entry in entries}
        if unknown:
            raise click.UsageError(f"the journal has no entry {', '.join(map(str, sorted(unknown)))}")
        for entry in room.close_by_hand(pair, wanted, reason) if wanted else []:
            click.echo(f"{entry.number}  {entry.outcome}")


@main.command()
@click.argument("file", type=_PATH)
@click.option(
    "--gaps",
    "gaps_file",
    type=click.File(encoding="utf-8"),
    metavar="LIST",
    help="What `gapconn gaps export` wrote, as JSON, typed again, or read from its QR code; - is standard input.",
)
@click.option("--topic", help="Or all records of this topic between two times.")
@click.option("--from", "from_time", metavar="TIME", help="As 2026-07-01T12:00:00+02:00; without a zone it is UTC.")
@click.option("--to", "to_time", metavar="TIME", help="Excluded.")
@click.option("--again", is_flag=True, help="The egress delivers them also where it does not miss them.")
def resend(
    *,
    file: Path,
    gaps_file: TextIO | None,
    topic: str | None,
    from_time: str | None,
    to_time: str | None,
    again: bool,
) -> None:
    """Send records again that the egress misses.

    FILE is the pair's configuration, on the ingress's host and as the user that runs the ingress. A running ingress
    takes the request up beside its other work; where none runs, this command is one until all is sent. The egress
    delivers what its journal misses, and nothing else, so sending too much does no harm.

    \b
    Example:
      gapconn resend pair.toml --gaps gaps.json
      gapconn resend pair.toml --topic orders --from 2026-07-01T12:00:00Z --to 2026-07-01T12:10:00Z
    """
    from gapconn import gaps as room
    from gapconn.resend import cannot_resend

    times = (topic, from_time, to_time)
    if (gaps_file is None) == (None in times) or (gaps_file is not None and any(times)):
        raise click.UsageError("give either --gaps, or --topic with --from and --to")
    pair = _pair_of(file, "ingress")
    problem = cannot_resend(pair.source.type if pair.source else "")
    if problem is not None:
        _print_problems([f"{file}: source.type: {problem}"])
        sys.exit(EXIT_USAGE)
    with _told("resend"):
        if gaps_file is not None:
            wanted = room.wanted_of(pair, gaps_file.read(), again=again)
        else:
            try:
                begin, end = room.milliseconds(from_time or ""), room.milliseconds(to_time or "")
            except ValueError as error:
                raise click.UsageError(f"--from, --to: {error}") from error
            wanted = room.wanted_between(topic or "", begin, end, again=again)
        number, running = room.ask(pair, wanted)
        if running:
            click.echo(f"request {number} for the running ingress; it is done also if you stop watching", err=True)
            progress = room.watch(pair, number, lambda words: click.echo(words, err=True))
        else:
            _resend_here(pair)
            progress = room.progress_of(pair, number)
        for line in room.report(progress):
            click.echo(line)
        if not progress.finished or progress.problems:
            sys.exit(EXIT_FAILURE)


def _resend_here(pair: Pair) -> None:
    """Be the link's ingress until what is wanted was sent."""
    import attrs
    import trio

    from gapconn.config import Role
    from gapconn.logs import configure_logging
    from gapconn.service import serve_ingress

    configure_logging(pair.log)

    async def serve() -> None:
        await serve_ingress(attrs.evolve(pair, admin=None), only_resends=True)

    try:
        trio.run(serve)
    except BaseException as error:
        _explain(error, Role.INGRESS.value)


def _pair_of(file: Path, role: str) -> Pair:
    """The configuration as this end reads it; exits when it is wrong."""
    from gapconn.config import Role, load_pair

    try:
        return load_pair(file, os.environ, role=Role(role))
    except ConfigError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_USAGE)


@contextmanager
def _told(command: str) -> Iterator[None]:
    """Say in lines why the command failed, and exit."""
    from gapconn.bundle import BundleError

    try:
        yield
    except BundleError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_USAGE)
    except (GapconnError, OSError) as error:
        click.secho(f"gapconn {command}: {error}", fg="red", err=True)
        sys.exit(EXIT_FAILURE)


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
@click.argument("file", type=_PATH)
@click.option("--check", "only_check", is_flag=True, help="Only say what is wrong with FILE.")
def dedup(file: Path, only_check: bool) -> None:
    """Make one topic of the copies that redundant links wrote.

    FILE is a configuration of its own, not that of a pair. Runs on the destination side, once: a second instance takes
    over, and the first one ends. SIGTERM or SIGINT ends it cleanly.

    \b
    Example:
      gapconn dedup --check dedup.toml
      gapconn dedup dedup.toml
    """
    from gapconn.dedup.config import load_dedup

    try:
        loaded = load_dedup(file, os.environ)
    except ConfigError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_USAGE)
    if only_check:
        click.echo(f"{file}: " + click.style("ok", fg="green"))
        return

    import trio

    from gapconn import garbage
    from gapconn.dedup.service import serve_dedup
    from gapconn.logs import configure_logging
    from gapconn.memory import keep_freed_memory

    configure_logging(loaded.log)
    keep_freed_memory()
    garbage.settle()
    try:
        trio.run(serve_dedup, loaded)
    except BaseException as error:
        _explain(error, "dedup")


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


@main.group()
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
@click.argument("file", type=_PATH)
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
@click.argument("file", type=_PATH)
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
@click.argument("file", type=_PATH)
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
        _print_problems(error.problems)
        code = EXIT_USAGE
    except KeyboardInterrupt:
        code = EXIT_FAILURE
    except BaseException as error:
        known = [cause for cause in _leaves(error) if isinstance(cause, GapconnError)]
        if not known:
            raise
        _print_problems([str(cause) for cause in known])
        code = EXIT_FAILURE
    sys.exit(code)


def _serve(serve: Callable[[Pair], Awaitable[None]], file: Path, role: Role) -> None:
    """Run one end until it stops, and exit with the code that tells how it ended."""
    import trio

    from gapconn import garbage
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
    garbage.settle()
    try:
        trio.run(serve, pair)
    except BaseException as error:  # the groups of Trio's nurseries may hold a KeyboardInterrupt beside others
        _explain(error, role.value)


def _explain(error: BaseException, end: str) -> NoReturn:
    """Say why an end failed, in one line if it failed for a reason that it knows; then exit."""
    import structlog

    log = structlog.get_logger().bind(end=end)
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
