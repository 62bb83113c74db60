"""What happens in the demo, when, and how badly the gap behaves."""

from __future__ import annotations

import enum
from typing import Final

import attrs

HEARTBEAT_S: Final = 0.3
INTERRUPTION_S: Final = 1.5
RECORD_BYTES: Final = 1024
BATCH_BYTES: Final = 16 * 1024
"""Small: one lost datagram costs a whole message, and most messages shall cross."""
LINK_RATE: Final = "300 Mbit/s"


class Phase(enum.Enum):
    """The acts of the demo, in order: a short name, and what there is to see."""

    CLEAN = ("clean start", "The gap lets everything pass: nothing may be missing.")
    LOSSY = ("the gap loses", "Datagrams are dropped, damaged, doubled, reordered: what is lost is named.")
    KILLED = ("ingress killed", "SIGKILL: the egress hears nothing any more, and has to raise the alarm.")
    BACK = ("back again", "A new ingress names the session before it, and so gets the link at once.")
    STOP = ("stop", "SIGTERM: what is held is sent and delivered; then everything is counted.")

    def __init__(self, title: str, story: str) -> None:
        self.title = title
        self.story = story

    @property
    def number(self) -> int:
        """From 1."""
        return list(Phase).index(self) + 1


@attrs.frozen(kw_only=True)
class Durations:
    """How long data flows in each act, in seconds."""

    clean_s: float
    lossy_s: float
    away_s: float
    """From the alarm to the new ingress."""
    back_s: float


def durations(flowing_s: float) -> Durations:
    """For data that flows for `flowing_s` altogether, or for a little more where there would be nothing to see."""
    flowing_s = max(flowing_s, 2.5)
    return Durations(
        clean_s=0.2 * flowing_s, lossy_s=0.42 * flowing_s, away_s=min(1.5, 0.13 * flowing_s), back_s=0.25 * flowing_s
    )


GAP_FAULTS: Final = {"drop": 1 / 2000, "corrupt": 1 / 5000, "duplicate": 1 / 1000, "reorder": 1 / 200}
"""Probability for each datagram, by the name of the gap's option."""


def pair_file(*, gap: str, egress: str, state_directory: str, sections: str) -> str:
    """The configuration that both ends read.

    Args:
        gap: Where the ingress sends: the gap's near side.
        egress: Where the egress listens: the gap's far side.
        state_directory: Where both keep their state.
        sections: `[source]` and `[sink]`.
    """
    return f"""[link]
name = "demo"
address = "{gap}"
bind = "{egress}"
rate = "{LINK_RATE}"
batch_bytes = {BATCH_BYTES}
heartbeat_interval = "{HEARTBEAT_S} s"
interruption_timeout = "{INTERRUPTION_S} s"
state_directory = "{state_directory}"
fec = {{ repair = 0 }}  # so that there are losses to be seen

{sections}
[admin]
listen = "127.0.0.1:0"

[log]
format = "json"
"""
