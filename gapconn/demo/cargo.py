"""What crosses the gap in the demo."""

from __future__ import annotations

from typing import Final, Protocol

import trio

from gapconn.demo.checks import Check, check_sessions
from gapconn.demo.ledger import Ledger
from gapconn.demo.plan import RECORD_BYTES

GENERATED_RATE: Final = "100 Mbit/s"


class Cargo(Protocol):
    """The data of one demo, and how it is verified. The methods are called in the order in which they stand here."""

    source: str
    """What the ingress reads, in a word or two."""
    sink: str
    """What the egress writes, in a word or two."""
    overhead_s: float
    """What a demo takes beside the time in which data flows: processes start, a session announces itself, and so on."""

    async def prepare(self) -> None:
        """Make ready what the two ends need.

        Raises:
            DemoError: it cannot be done.
        """

    def sections(self) -> str:
        """`[source]` and `[sink]` of the pair's configuration."""

    async def feed(self) -> None:
        """Bring data to the source, until cancelled."""

    async def drain(self) -> None:
        """Wait until the ingress has sent what was fed, and has remembered that."""

    async def verify(self, ledger: Ledger) -> list[Check]:
        """Compare what was sent with what arrived, after both ends have stopped."""

    async def clean_up(self) -> str | None:
        """Remove what `prepare` made, whatever happened; a sentence about what could not be removed."""


class GeneratedCargo:
    """Numbered records that verify themselves, from the generate source to the discard sink."""

    source = "generated records"
    sink = "verified one by one"
    overhead_s = 7.0

    async def prepare(self) -> None:
        """There is nothing to make ready."""

    def sections(self) -> str:
        """`[source]` and `[sink]` of the pair's configuration."""
        return (
            f'[source]\ntype = "generate"\nsize_bytes = {RECORD_BYTES}\nrate = "{GENERATED_RATE}"\n\n'
            '[sink]\ntype = "discard"\n'
        )

    async def feed(self) -> None:
        """The source makes its data itself."""
        await trio.sleep_forever()

    async def drain(self) -> None:
        """What was not made yet is not missed."""

    async def verify(self, ledger: Ledger) -> list[Check]:
        """The sink has verified every record; the egress has reported every other one."""
        egress = ledger.egress
        sent = sum(session.settled_records for session in ledger.sessions)
        named = sum(session.lost_records.count for session in ledger.sessions)
        return [
            Check(
                egress.first == 0 and egress.verified + egress.records_lost == sent,
                f"{sent:,} records sent = {egress.verified:,} delivered and verified + {egress.records_lost:,} lost",
            ),
            Check(
                egress.damaged == egress.duplicates == egress.reordered == 0,
                f"{egress.damaged:,} records damaged, {egress.duplicates:,} delivered twice, "
                f"{egress.reordered:,} out of order",
            ),
            Check(
                egress.missing == egress.records_lost and (named == egress.records_lost or ledger.ranges_widened),
                f"{egress.records_lost:,} records lost: the egress named {named:,} of them by number, and "
                f"{egress.missing:,} numbers did not come to the sink",
            ),
            *check_sessions(ledger),
        ]

    async def clean_up(self) -> None:
        """There is nothing to remove."""
