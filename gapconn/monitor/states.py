"""When a pair is taken out, and when it may work again: a state machine as data, and the damping of flapping.

A monitor asks an egress again and again. One failed check is nothing (a packet was lost, a host was busy); several in a
row take the pair out: its ingress is to be held. Once the egress is healthy again, it must stay so for a while before
the ingress is let go. That while doubles with each time that the pair was out, so a pair that flaps is out most of the
time instead of moving the load back and forth; after a long time of work it begins with the short while again.

A monitor that has just started knows nothing. It changes nothing until it has seen enough to judge: so the restart of a
monitor moves no load. If it finds its own hold at the ingress, it goes on where it was.

The table is complete: each state has an entry for each input.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs


class PairState(enum.Enum):
    """What the monitor thinks of a pair."""

    UNKNOWN = "unknown"
    """It has just started."""
    WORKING = "working"
    SUSPECT = "suspect"
    """Checks failed, but not enough of them."""
    OUT = "out"
    """The egress is dead or hung; the ingress is to be held."""
    RECOVERING = "recovering"
    """The egress is healthy, and not for long enough; the ingress is still to be held."""


class PairInput(enum.Enum):
    """What the monitor sees."""

    GOOD = "good check"
    BAD = "bad check"
    CONFIRMED = "as many bad checks in a row as it takes"
    PROVEN = "good for long enough"
    FOUND_HELD = "own hold found at the ingress"


class PairEffect(enum.Enum):
    """What is to be told and done once; that the hold is as wanted is looked after at each check."""

    NOTHING = "nothing"
    TAKE_OUT = "take out"
    LET_WORK = "let work"


_S, _I, _E = PairState, PairInput, PairEffect

PAIR_TABLE: Final[dict[tuple[PairState, PairInput], tuple[PairEffect, PairState]]] = {
    (_S.UNKNOWN, _I.GOOD): (_E.NOTHING, _S.WORKING),
    (_S.UNKNOWN, _I.BAD): (_E.NOTHING, _S.UNKNOWN),
    (_S.UNKNOWN, _I.CONFIRMED): (_E.TAKE_OUT, _S.OUT),
    (_S.UNKNOWN, _I.PROVEN): (_E.NOTHING, _S.WORKING),
    (_S.UNKNOWN, _I.FOUND_HELD): (_E.NOTHING, _S.OUT),
    (_S.WORKING, _I.GOOD): (_E.NOTHING, _S.WORKING),
    (_S.WORKING, _I.BAD): (_E.NOTHING, _S.SUSPECT),
    (_S.WORKING, _I.CONFIRMED): (_E.TAKE_OUT, _S.OUT),
    (_S.WORKING, _I.PROVEN): (_E.NOTHING, _S.WORKING),
    (_S.WORKING, _I.FOUND_HELD): (_E.NOTHING, _S.WORKING),
    (_S.SUSPECT, _I.GOOD): (_E.NOTHING, _S.WORKING),
    (_S.SUSPECT, _I.BAD): (_E.NOTHING, _S.SUSPECT),
    (_S.SUSPECT, _I.CONFIRMED): (_E.TAKE_OUT, _S.OUT),
    (_S.SUSPECT, _I.PROVEN): (_E.NOTHING, _S.WORKING),
    (_S.SUSPECT, _I.FOUND_HELD): (_E.NOTHING, _S.SUSPECT),
    (_S.OUT, _I.GOOD): (_E.NOTHING, _S.RECOVERING),
    (_S.OUT, _I.BAD): (_E.NOTHING, _S.OUT),
    (_S.OUT, _I.CONFIRMED): (_E.NOTHING, _S.OUT),
    (_S.OUT, _I.PROVEN): (_E.NOTHING, _S.RECOVERING),
    (_S.OUT, _I.FOUND_HELD): (_E.NOTHING, _S.OUT),
    (_S.RECOVERING, _I.GOOD): (_E.NOTHING, _S.RECOVERING),
    (_S.RECOVERING, _I.BAD): (_E.NOTHING, _S.OUT),
    (_S.RECOVERING, _I.CONFIRMED): (_E.NOTHING, _S.OUT),
    (_S.RECOVERING, _I.PROVEN): (_E.LET_WORK, _S.WORKING),
    (_S.RECOVERING, _I.FOUND_HELD): (_E.NOTHING, _S.RECOVERING),
}

_WANTS_HOLD: Final = {_S.UNKNOWN: None, _S.WORKING: False, _S.SUSPECT: None, _S.OUT: True, _S.RECOVERING: True}


@attrs.define(kw_only=True)
class PairMachine:
    """A pair's state, with the counting and the times that make inputs of checks. Times are in seconds of one clock."""

    failures: int
    """Bad checks in a row that take a pair out."""
    recover_after_s: float
    hold_max_s: float
    state: PairState = PairState.UNKNOWN
    times_out: int = 0
    """How often it was out, since it last worked for `hold_max_s`."""
    bad_in_row: int = 0
    good_since_s: float | None = None
    """None while checks fail."""
    working_since_s: float | None = None

    @property
    def wants_hold(self) -> bool | None:
        """Whether the ingress is to be held; None: leave it as it is."""
        return _WANTS_HOLD[self.state]

    @property
    def hold_s(self) -> float:
        """How long the egress must be healthy before the ingress may work."""
        return min(self.hold_max_s, self.recover_after_s * 2.0 ** min(max(0, self.times_out - 1), 32))

    def good_for_s(self, now_s: float) -> float:
        """How long all checks were good."""
        return 0.0 if self.good_since_s is None else now_s - self.good_since_s

    def found_held(self) -> None:
        """The ingress says that it is held by this monitor."""
        self._step(PairInput.FOUND_HELD)

    def check(self, now_s: float, *, good: bool) -> PairEffect:
        """Take in a check; what is to be done."""
        if not good:
            self.good_since_s = self.working_since_s = None
            self.bad_in_row += 1
            effect = self._step(PairInput.CONFIRMED if self.bad_in_row >= self.failures else PairInput.BAD)
            self.times_out += effect is PairEffect.TAKE_OUT
            return effect
        self.bad_in_row = 0
        if self.good_since_s is None:
            self.good_since_s = now_s
        effect = self._step(PairInput.GOOD)
        if effect is PairEffect.NOTHING and self.good_for_s(now_s) >= self.hold_s:
            effect = self._step(PairInput.PROVEN)
        if self.state is PairState.WORKING:
            if self.working_since_s is None:
                self.working_since_s = now_s
            elif now_s - self.working_since_s >= self.hold_max_s:
                self.times_out = 0
        return effect

    def _step(self, what: PairInput) -> PairEffect:
        effect, self.state = PAIR_TABLE[self.state, what]
        return effect
