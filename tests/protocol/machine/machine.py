"""The search: Hypothesis chooses what the ingresses, the gap, the egress and the clocks do."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from hypothesis import event, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.protocol.machine.forgery import INJECTIONS, STROKES, Stroke
from tests.protocol.machine.scenario import written_down
from tests.protocol.machine.world import HEARTBEAT_TICKS, SENT_MESSAGE_BYTES_MAX, VOLATILE, World

hosts = st.sampled_from([0, 0, 0, 1, 2])
shares = st.integers(0, 999)
sizes = st.sampled_from([0, 30, 300, 1_500, 3_000, 8_000, 12_000, 25_000, 39_000, SENT_MESSAGE_BYTES_MAX])
parts = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 3]), st.integers(1, 4)).map(list), max_size=3)
ways_to_wait = st.sampled_from(["punctual", "late", "asleep"])
counts = st.sampled_from([1, 1, 2, 3, 10, 100, 400])


def strokes(kinds: tuple[str, ...] = STROKES) -> st.SearchStrategy[list[Stroke]]:
    """What the gap does to the datagrams of one message."""
    stroke = st.tuples(st.sampled_from(kinds), shares, counts, st.integers(0, 2_000)).map(list)
    return st.lists(stroke, min_size=1, max_size=3)


class LinkMachine(RuleBasedStateMachine):
    """Everything that may happen to a link. Faults are in the network, the clocks and the hosts, never in the core."""

    reached: ClassVar[Counter[str]]
    """In how many runs each noteworthy thing happened; `runs` counts them all."""

    def __init__(self) -> None:
        super().__init__()
        self._world: World | None = None
        self._arguments: dict[str, Any] = {}

    @initialize(
        reassembly_bytes_max=st.sampled_from([1 << 20, 50_000, 16_000]),
        message_bytes_max=st.sampled_from([SENT_MESSAGE_BYTES_MAX, 30_000]),
        burst_max=st.sampled_from([1, 3, 64]),
        repair_share=st.sampled_from([0, 0, 0, 1_000, 5_000]),
        sealed=st.booleans(),
        available=st.booleans(),
    )
    def begin(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._world = World(**arguments, mark=event)
        self._do("start_ingress", host=0, keep=False)
        self._do("wait", ticks=50, how="punctual")

    def _do(self, name: str, **arguments: Any) -> None:
        world = self._world
        assert world is not None
        try:
            getattr(world, name)(**arguments)
        except BaseException:
            note(written_down(self._arguments, world.steps))
            self._world = None  # nothing more can be said of it
            raise

    def _active(self, choice: int) -> int:
        """One of the ingresses that can send, if there is any."""
        assert self._world is not None
        active = [host for host, ingress in enumerate(self._world.ingresses) if ingress.active]
        return active[choice % len(active)] if active else choice

    # -- messages ---------------------------------------------------------------------------------------------

    @rule(host=hosts, parts=parts, plain=st.integers(0, 2), size=sizes, commit=st.booleans())
    def send(self, **arguments: Any) -> None:
        """To whichever ingress: one that cannot send refuses."""
        self._do("send", strokes=[], **arguments)

    @rule(host=hosts, parts=parts, plain=st.integers(0, 2), size=sizes, commit=st.booleans(), strokes=strokes())
    def send_struck(self, host: int, **arguments: Any) -> None:
        self._do("send", host=self._active(host), **arguments)

    @rule(host=hosts, parts=parts, sizes=st.lists(sizes, min_size=2, max_size=4), strokes=strokes(("drop", "delay")))
    def send_behind_a_gap(self, host: int, parts: list[list[int]], sizes: list[int], strokes: list[Stroke]) -> None:
        """The first message is held up or incomplete while others follow."""
        for place, size in enumerate(sizes):
            arguments = {"parts": parts, "plain": 1, "size": size, "commit": True, "strokes": [] if place else strokes}
            self._do("send", host=self._active(host), **arguments)

    @rule(host=hosts, count=st.sampled_from([4, 14]), strokes=strokes(("drop", "delay", "spoil")))
    def send_many(self, host: int, **arguments: Any) -> None:
        self._do("send_many", host=self._active(host), **arguments)

    @rule(host=hosts, parts=parts, strokes=st.one_of(st.just([]), strokes(("drop",))), size=sizes)
    def send_again(self, host: int, parts: list[list[int]], strokes: list[Stroke], size: int) -> None:
        """An ingress that was killed before it told its source sends the same records again."""
        host = self._active(host)
        for _ in range(2):
            self._do("send", host=host, parts=parts, plain=0, size=size, commit=False, strokes=strokes)
        self._do("start_ingress", host=host, keep=True)
        for _ in range(2):
            self._do("send", host=host, parts=parts, plain=0, size=size, commit=True, strokes=[])

    @rule(host=hosts, ticks=st.sampled_from([3, 10]), parts=parts)
    def send_steadily(self, host: int, ticks: int, parts: list[list[int]]) -> None:
        """For longer than a heartbeat interval there is always something to send."""
        host = self._active(host)
        for _ in range(0, 2 * HEARTBEAT_TICKS, ticks):
            self._do("send", host=host, parts=parts, plain=0, size=20, commit=True, strokes=[])
            self._do("wait", ticks=ticks, how="late")

    @rule(host=hosts, how=st.sampled_from(["rewind", "restart", "both"]), drop=st.booleans(), before=st.integers(1, 3))
    def send_from_the_start_again(self, host: int, how: str, drop: bool, before: int) -> None:
        """The positions of a partition begin again, in a new session or not; the first message may be lost."""
        host = self._active(host)
        arguments = {"host": host, "parts": [[VOLATILE, before]], "plain": 0, "size": 20, "commit": True}
        self._do("send", strokes=[], **arguments)
        if how != "rewind":
            self._do("start_ingress", host=host, keep=True)
        if how != "restart":
            self._do("rewind", host=host)
        self._do("send", strokes=[["drop", 0, 1_000, 0]] if drop else [], **{**arguments, "parts": [[VOLATILE, 1]]})
        self._do("send", strokes=[], **arguments)

    @rule(host=hosts, size=sizes, pause_ticks=st.sampled_from([1, 7, 17]), strokes=st.one_of(st.just([]), strokes()))
    def send_slowly(self, host: int, **arguments: Any) -> None:
        """Heartbeats find their way between the bursts of one message."""
        self._do("send", host=self._active(host), parts=[[0, 2]], plain=0, commit=True, **arguments)

    @rule(host=hosts, where=shares, count=st.sampled_from([1, 3, 30]), strokes=st.one_of(st.just([]), strokes()))
    def repeat(self, host: int, **arguments: Any) -> None:
        """Messages are sent again, whatever became of them."""
        self._do("repeat", host=self._active(host), **arguments)

    @rule(host=hosts, parts=parts, sizes=st.lists(sizes, min_size=2, max_size=4), strokes=strokes(("drop",)))
    def lose_and_repeat(self, host: int, parts: list[list[int]], sizes: list[int], strokes: list[Stroke]) -> None:
        """What is missing is given up, and comes in a repeat."""
        host = self._active(host)
        for place, size in enumerate(sizes):
            arguments = {"parts": parts, "plain": 1, "size": size, "commit": True, "strokes": [] if place else strokes}
            self._do("send", host=host, **arguments)
        self._do("wait", ticks=18, how="punctual")
        self._do("repeat", host=host, where=0, count=1_000, strokes=[])

    @rule(host=hosts, messages=st.integers(1, 3))
    def outage(self, host: int, messages: int) -> None:
        self._do("outage", host=self._active(host), messages=messages)

    # -- the ingresses ----------------------------------------------------------------------------------------

    @rule(host=hosts, keep=st.booleans(), ticks=st.sampled_from([0, 0, 50]))
    def start_ingress(self, host: int, keep: bool, ticks: int) -> None:
        self._do("start_ingress", host=host, keep=keep)
        self._do("wait", ticks=ticks, how="punctual")

    @rule(thief=hosts, victim=hosts)
    def steal_state(self, thief: int, victim: int) -> None:
        self._do("steal_state", thief=thief, victim=victim)
        self._do("start_ingress", host=thief, keep=True)

    @rule(host=hosts, strokes=st.one_of(st.just([]), strokes()))
    def stop_ingress(self, host: int, strokes: list[Stroke]) -> None:
        self._do("stop_ingress", host=self._active(host), strokes=strokes)

    @rule(host=hosts)
    def kill_ingress(self, host: int) -> None:
        self._do("kill_ingress", host=self._active(host))

    @rule(host=hosts, key_id=st.sampled_from([1, 2]), size=sizes, keys=st.sampled_from([[1, 2], [1], [2]]))
    def change_key(self, host: int, key_id: int, size: int, keys: list[int]) -> None:
        """In the midst of a message, as its datagrams are built burst by burst; the egress may not have it."""
        host = self._active(host)
        self._do("give_keys", key_ids=keys)
        self._do("use_key", host=host, key_id=key_id)
        self._do("send", host=host, parts=[[0, 1]], plain=1, size=size, commit=True, strokes=[])
        self._do("give_keys", key_ids=[1, 2])

    @rule(ms=st.sampled_from([-5_000, 5_000]))
    def set_wall_clock(self, ms: int) -> None:
        self._do("set_wall_clock", ms=ms)

    # -- the path ---------------------------------------------------------------------------------------------

    @rule(where=shares, count=st.sampled_from([1, 3, 30]))
    def replay(self, **arguments: Any) -> None:
        self._do("replay", **arguments)

    @rule(kinds=st.lists(st.sampled_from(["foreign", "foreign", "noise", *INJECTIONS]), min_size=1), where=shares)
    def inject(self, kinds: list[str], where: int) -> None:
        for kind in kinds:
            self._do("inject", kind=kind, where=where)

    # -- the egress -------------------------------------------------------------------------------------------

    @rule(
        accepted=st.integers(0, 9), keep=st.booleans(), in_order=st.booleans(), away_ticks=st.sampled_from([0, 5, 60])
    )
    def restart_egress(self, accepted: int, **arguments: Any) -> None:
        self._do("accept", count=accepted)
        self._do("restart_egress", **arguments)

    # -- time -------------------------------------------------------------------------------------------------

    @rule(ticks=st.sampled_from([1, 4, 15, 16, 17, 33]), how=ways_to_wait)
    def wait(self, **arguments: Any) -> None:
        self._do("wait", **arguments)

    @rule(ticks=st.sampled_from([47, 48, 49, 64, 65, 130]), how=ways_to_wait)
    def wait_long(self, **arguments: Any) -> None:
        self._do("wait", **arguments)

    @rule(ticks=st.sampled_from([1, 16, 100]))
    def step_back(self, ticks: int) -> None:
        self._do("step_back", ticks=ticks)

    def teardown(self) -> None:
        world = self._world
        if world is None:
            return
        self._do("settle")
        self.reached.update({"runs": 1, **dict.fromkeys(world.reached, 1)})
