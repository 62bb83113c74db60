"""The commands `gapconn gaps` and `gapconn resend`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from gapconn.commands.failures import EXIT_FAILURE, EXIT_USAGE, exit_on_failure, explain, print_problems
from gapconn.commands.files import FILE, PATH, pair_of

if TYPE_CHECKING:
    from gapconn.config import Pair


@click.group()
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
@FILE
@click.option("--all", "closed", is_flag=True, help="Closed entries too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a row for each range.")
def gaps_list(file: Path, closed: bool, as_json: bool, as_csv: bool) -> None:
    """What is missing, the oldest first."""
    from gapconn import gaps as room
    from gapconn.store.journal import facts

    with exit_on_failure("gaps list"):
        entries = room.entries_of(pair_of(file, "egress"), closed=closed)
    if as_json:
        click.echo(json.dumps([facts(entry) for entry in entries], indent=2, ensure_ascii=False))
    elif as_csv:
        click.echo(room.as_csv(entries), nl=False)
    else:
        for line in room.table(entries):
            click.echo(line)
        click.echo(f"{sum(entry.open for entry in entries)} open", err=True)


@gaps.command("export")
@FILE
@_ENTRIES
@click.option("--output", "-o", type=PATH, help="Write to this file; .png and .svg make a picture of a QR code.")
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

    pair = pair_of(file, "egress")
    picture = output is not None and output.suffix.lower() in (".png", ".svg")
    form = form or ("qr" if picture else "text" if output is not None and output.suffix == ".txt" else "json")
    if form == "qr" and output is not None and not picture:
        raise click.UsageError("a QR code is written to a .png or an .svg file, or without --output to the terminal")
    with exit_on_failure("gaps export"):
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
@FILE
@_ENTRIES
@click.option("--all", "everything", is_flag=True, help="All open entries.")
@click.option("--reason", required=True, help="Why; it stays in the journal.")
def gaps_close(file: Path, numbers: tuple[int, ...], everything: bool, reason: str) -> None:
    """Close entries that nobody needs any more, or that cannot be sent again."""
    from gapconn import gaps as room

    if bool(numbers) == everything:
        raise click.UsageError("name the entries to close, or give --all")
    pair = pair_of(file, "egress")
    with exit_on_failure("gaps close"):
        entries = room.entries_of(pair, closed=True)
        wanted = [entry.number for entry in entries if entry.open] if everything else list(numbers)
        unknown = set(wanted) - {entry.number for entry in entries}
        if unknown:
            raise click.UsageError(f"the journal has no entry {', '.join(map(str, sorted(unknown)))}")
        for entry in room.close_by_hand(pair, wanted, reason) if wanted else []:
            click.echo(f"{entry.number}  {entry.outcome}")


_WAYS_TO_SAY_WHAT = ({"gaps"}, {"topic", "from", "to"}, {"topic", "partition", "offsets"})


@click.command()
@FILE
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
@click.option("--partition", type=click.IntRange(min=0), help="Or offsets of one partition of this topic.")
@click.option("--offsets", metavar="FIRST-LAST", help="Of which ones; LAST is included.")
@click.option("--again", is_flag=True, help="The egress delivers them also where it does not miss them.")
def resend(
    *,
    file: Path,
    gaps_file: TextIO | None,
    topic: str | None,
    from_time: str | None,
    to_time: str | None,
    partition: int | None,
    offsets: str | None,
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
      gapconn resend pair.toml --topic orders --partition 3 --offsets 1200-1450 --again
    """
    from gapconn import gaps as room
    from gapconn.resend import cannot_resend

    given: dict[str, object] = {"gaps": gaps_file, "topic": topic, "from": from_time, "to": to_time}
    given |= {"partition": partition, "offsets": offsets}
    if {name for name, value in given.items() if value is not None} not in _WAYS_TO_SAY_WHAT:
        raise click.UsageError(
            "give either --gaps, or --topic with --from and --to, or --topic with --partition and --offsets"
        )
    pair = pair_of(file, "ingress")
    buffered = pair.repeat_buffer is not None and gaps_file is not None
    problem = cannot_resend(pair.source.type if pair.source else "", buffered=buffered)
    if problem is not None:
        print_problems([f"{file}: source.type: {problem}"])
        sys.exit(EXIT_USAGE)
    with exit_on_failure("resend"):
        if gaps_file is not None:
            wanted = room.wanted_of(pair, gaps_file.read(), again=again)
        elif offsets is not None:
            try:
                wanted = room.wanted_offsets(topic or "", partition or 0, offsets, again=again)
            except ValueError as error:
                raise click.UsageError(f"--offsets: {error}") from error
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
        explain(error, Role.INGRESS.value)
