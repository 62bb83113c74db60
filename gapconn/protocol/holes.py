"""Where the datagrams were lost that are missing in the sequence, as far as this end can know."""

from __future__ import annotations


class Holes:
    """Puts each missing datagram to one place, when the hole in the sequence shows.

    What comes out of a socket is in order: a hole that shows with a datagram was made between it and the one before.
    So what this host dropped there, and what came there and could not be read, is what is missing, up to as many as
    are; the others of the hole never reached this host. A flood of garbage beside a whole sequence makes no hole, and
    is not taken for loss.

    Attributes:
        unreadable: Missing datagrams that arrived damaged.
        dropped_here: Missing datagrams that this host dropped unread.
    """

    __slots__ = ("_maybe_dropped", "_maybe_unreadable", "dropped_here", "pending", "unreadable")

    def __init__(self) -> None:
        self.unreadable = 0
        self.dropped_here = 0
        self.pending = False
        """Whether something happened that may have made a hole, which would show with the next datagram."""
        self._maybe_unreadable = 0
        self._maybe_dropped = 0

    def note_unreadable(self, count: int) -> None:
        """So many datagrams came of which nothing can be believed."""
        self._maybe_unreadable += count
        self.pending = True

    def note_dropped(self, count_max: int) -> None:
        """This host dropped datagrams, at most so many."""
        self._maybe_dropped += count_max
        self.pending = True

    def shown(self, missing: int) -> None:
        """The sequence went on behind a hole of so many datagrams; 0 where there is none."""
        unreadable = min(missing, self._maybe_unreadable)
        self.unreadable += unreadable
        self.dropped_here += min(missing - unreadable, self._maybe_dropped)
        self._maybe_unreadable = self._maybe_dropped = 0
        self.pending = False
