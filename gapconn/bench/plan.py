"""The steps of a bench, and what the ingress says about them in records of a stream of its own."""

from __future__ import annotations

import time

import attrs
import msgspec

from gapconn.record import Batch, Records
from gapconn.units import BitsPerSecond, Bytes

STREAM = "gapconn-bench"
"""Of what is said about the steps; the data itself is in the stream of the generate source."""

SHARES_OF_RATE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Without other wishes, these shares of the configured rate are tried."""
RATES_OF_UNLIMITED = tuple(
    BitsPerSecond(mbps * 1_000_000) for mbps in (500, 1000, 2000, 3000, 4000, 6000, 8000, 10_000)
)
PAUSE_S = 1.0
"""At most so long, and no longer than a step, an egress may take to work off what a step left it."""
REPEATS = 3
"""How often everything is said that must not be lost."""
REPEAT_INTERVAL_S = 0.1


@attrs.frozen(kw_only=True)
class Plan:
    """What an ingress is going to do."""

    rates_bps: list[BitsPerSecond]
    """One step each."""
    step_s: float
    size_bytes: Bytes
    """Of a record."""


def default_rates(rate_bps: int) -> list[BitsPerSecond]:
    """The rates to try on a link with the configured rate `rate_bps` (0: unlimited)."""
    if not rate_bps:
        return list(RATES_OF_UNLIMITED)
    return [BitsPerSecond(max(9600, int(rate_bps * share))) for share in SHARES_OF_RATE]


class Sent(msgspec.Struct, kw_only=True):
    """What the ingress sent in a step."""

    records: int
    payload_bytes: int
    datagrams: int
    wire_bytes: int
    """With all headers: what the rate is about."""
    took_s: float
    cpu_s: float
    """Of the ingress."""

    @property
    def wire_bps(self) -> float:
        """The rate that it came to."""
        return 8 * self.wire_bytes / self.took_s


class Announcement(msgspec.Struct, kw_only=True):
    """What an ingress says before and behind the data of a step."""

    step: int
    """From 0."""
    steps: int
    rate_bps: int
    step_s: float
    sent: Sent | None = None
    """Before the data: nothing yet."""
    is_last: bool = False
    """Behind the data: no step follows."""

    def batch(self) -> Batch:
        """As a batch of one record."""
        # The position only has to be new each time.
        record = Records(stream=STREAM, positions=[time.time_ns()], values=[msgspec.json.encode(self)])
        return Batch(parts=[record])


def announcements(records: Records) -> list[Announcement]:
    """What is said in records of `STREAM`; what cannot be read (another version's) is left out."""
    found = []
    for value in records.values:
        try:
            found.append(msgspec.json.decode(value or b"", type=Announcement))
        except msgspec.DecodeError:
            continue
    return found
