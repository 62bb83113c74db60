"""`gapconn demo`: a whole link pair at work on this machine, harmed on purpose, and an honest account of it.

Two real processes, an ingress and an egress, and between them the lossy gap of `gapconn.testing`. Reading order:

    plan      what happens when, and how badly the gap behaves
    story     the acts, one after the other
    processes ledger      what they are made of: processes, and what is known about them
    cargo kafka           what crosses: self-checking records, or the topics of a broker
    picture report        what is shown
    checks                whether the figures add up
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from rich.console import Console
from rich.live import Live

from gapconn.demo.cargo import Cargo, GeneratedCargo
from gapconn.demo.checks import Check
from gapconn.demo.ledger import Ledger
from gapconn.demo.picture import picture
from gapconn.demo.plan import durations
from gapconn.demo.processes import DemoError
from gapconn.demo.report import Progress, print_summary
from gapconn.demo.story import Story

__all__ = ["DemoError", "run_demo"]

EXIT_FAILURE = 1


def run_demo(*, kafka: str | None, seconds: float) -> int:
    """Run the demo in the foreground.

    Args:
        kafka: `host:port` of a broker whose topics are to be carried; None for generated records.
        seconds: About how long it may take.

    Returns:
        The exit code: 0 when every figure adds up, else 1.

    Raises:
        GapconnError: it could not be carried through; the text says why.
    """
    console = Console()
    cargo: Cargo = GeneratedCargo()
    title = "two processes, and a gap that loses"
    if kafka is not None:
        from gapconn.demo.kafka import KafkaCargo  # noqa: PLC0415 - only this one needs the Kafka client

        cargo, title = KafkaCargo(kafka), f"Kafka at {kafka}, and a gap that loses"
    ledger = Ledger(title=title, source=cargo.source, sink=cargo.sink, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="gapconn-demo-") as directory, _shown(ledger, console) as show:
        story = Story(
            cargo=cargo,
            ledger=ledger,
            durations=durations(seconds - cargo.overhead_s),
            directory=Path(directory),
            show=show,
        )
        told = trio.run(_tell, story)
    if told is None:
        console.print("interrupted: everything that was started has ended")
        return EXIT_FAILURE
    checks, left_behind = told
    print_summary(console, ledger, checks)
    if left_behind:
        console.print(left_behind)
    if all(check.holds for check in checks):
        console.print("[bold green]All figures add up.[/bold green] Nothing was lost silently.")
        return 0
    console.print(
        "[bold red]The figures do not add up.[/bold red] This is a bug: please report it, with what is above."
    )
    return EXIT_FAILURE


@contextmanager
def _shown(ledger: Ledger, console: Console) -> Iterator[Callable[[], None]]:
    """How the story is shown: the function to call when there is something new."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Progress(ledger, console).show
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda: live.update(picture(ledger, console.width), refresh=True)


async def _tell(story: Story) -> tuple[list[Check], str | None] | None:
    """The story; None when somebody wants it to end early."""
    told = None
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:

                async def end_on_signal() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(end_on_signal)
                told = await story.run()
                nursery.cancel_scope.cancel()
    except* DemoError as group:
        raise DemoError(str(_first(group))) from None
    return told


def _first(group: BaseExceptionGroup[DemoError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
