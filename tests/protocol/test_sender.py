"""The sending half: what it sends, in which order, numbered how, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.errors import LocalProtocolError
from gapconn.protocol.envelope import MESSAGE_OVERHEAD_BYTES, Run, open_message
from gapconn.protocol.registry import MESSAGE_BYTES_MAX, DatagramType, MessageKind, Phase
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.states import SenderState
from gapconn.protocol.wire import Announcement, Burst, Header, Slab
from tests.protocol.frames import LINK_ID, Session, split

STARTUP, DATA, HEARTBEAT, SHUTDOWN = DatagramType
EPOCH, PREVIOUS = 200, 100


@attrs.define
class Ingress:
    """A sender, and all datagrams that it has built."""

    sender: LinkSender
    sent: list[bytes] = attrs.field(factory=list)

    def keep(self, bursts: list[Burst]) -> list[bytes]:
        new = [datagram for burst in bursts for datagram in split(burst)]
        self.sent += new
        return new

    def start(self, now_s: float = 0.0) -> list[bytes]:
        return self.keep(self.sender.start(now_s))

    def tick(self, now_s: float) -> list[bytes]:
        return self.keep(self.sender.handle_timeout(now_s))

    def message(
        self, body: bytes = b"", runs: Sequence[Run] = (), record_count: int = 1, now_s: float = 0.0
    ) -> list[bytes]:
        self.sender.compose(list(runs), record_count, writer(body), now_s)
        new: list[bytes] = []
        while (burst := self.sender.next_burst(Slab())) is not None:
            new += self.keep([burst])
        return new

    def stop(self) -> list[bytes]:
        return self.keep(self.sender.stop())


def writer(body: bytes) -> Callable[[bytearray, int], None]:
    def write(buffer: bytearray, offset: int) -> None:
        assert len(buffer) == offset
        buffer += body

    return write


def ingress(
    *,
    previous_epoch: int = PREVIOUS,
    heartbeat_interval_s: float = 1.0,
    interruption_timeout_s: float = 3.0,
    mtu_bytes: int = 1_500,
    ip_header_bytes: int = 28,
    message_bytes_max: int = 16 << 20,
    burst_datagrams_max: int = 64,
) -> Ingress:
    return Ingress(
        LinkSender(
            SenderSettings(
                link_id=LINK_ID,
                epoch=EPOCH,
                previous_epoch=previous_epoch,
                heartbeat_interval_s=heartbeat_interval_s,
                interruption_timeout_s=interruption_timeout_s,
                mtu_bytes=mtu_bytes,
                ip_header_bytes=ip_header_bytes,
                message_bytes_max=message_bytes_max,
                burst_datagrams_max=burst_datagrams_max,
            )
        )
    )


def active() -> Ingress:
    subject = ingress()
    subject.start()
    return subject


def types(datagrams: list[bytes]) -> list[DatagramType]:
    return [DatagramType(Header.unpack(datagram).type) for datagram in datagrams]


def said(datagram: bytes) -> Announcement:
    return Announcement.unpack(datagram[48:-8])


def run(previous: int, first: int, last: int, stream: str = "s") -> Run:
    return Run(stream, 0, previous, first, last, last - first + 1)


# -- the beginning -------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-SESS-2", "GC-WIRE-1", "GC-WIRE-2", "GC-WIRE-5")
def test_a_session_begins_with_startups_that_name_the_one_before() -> None:
    subject = ingress()
    by_hand = Session(epoch=EPOCH, previous_epoch=PREVIOUS)
    assert subject.start() == [by_hand.startup(mtu_bytes=1_500, symbol_bytes_max=1_416) for _ in range(3)]
    assert subject.sender.state is SenderState.ACTIVE
    assert types(subject.message(b"at once")) == [DATA]


@pytest.mark.req("GC-SESS-17")
def test_an_ingress_that_is_paused_says_so_and_its_session_goes_on() -> None:
    subject = ingress(previous_epoch=1)
    subject.start(10.0)
    subject.sender.paused = True
    subject.tick(11.0)
    subject.sender.paused = False
    subject.tick(12.0)
    assert [said(datagram).phase for datagram in subject.sent[3:]] == [Phase.PAUSED, Phase.ACTIVE]
    subject.sender.paused = True
    assert {said(bytes(burst.bytes)).phase for burst in subject.sender.stop()} == {Phase.CLOSING}


@pytest.mark.req("GC-SESS-3")
def test_an_ingress_without_state_announces_itself_for_one_interruption_timeout() -> None:
    subject = ingress(previous_epoch=0)
    assert types(subject.start(10.0)) == [STARTUP] * 3
    assert subject.sender.state is SenderState.ANNOUNCING
    times = []
    for _ in range(3):
        deadline = subject.sender.next_deadline_s()
        assert deadline is not None
        assert subject.tick(deadline - 0.001) == []
        with pytest.raises(LocalProtocolError, match="not possible in the state 'announcing'"):
            subject.message(b"too early")
        times.append((deadline, types(subject.tick(deadline))))
    assert times == [(11.0, [STARTUP]), (12.0, [STARTUP]), (13.0, [HEARTBEAT])]
    assert subject.sender.state.value == "active"
    assert [said(datagram).phase for datagram in subject.sent] == [Phase.ANNOUNCING] * 5 + [Phase.ACTIVE]
    assert all(said(datagram).previous_epoch == 0 for datagram in subject.sent)
    assert types(subject.message(b"now")) == [DATA]


def test_a_session_begins_once() -> None:
    subject = active()
    with pytest.raises(LocalProtocolError, match="not possible in the state 'active'"):
        subject.start()


def test_nothing_is_sent_before_the_start() -> None:
    subject = ingress()
    assert subject.sender.next_deadline_s() is None
    assert subject.tick(100.0) == []
    with pytest.raises(LocalProtocolError, match="'new'"):
        subject.message(b"")
    assert subject.stop() == []
    assert subject.sender.state is SenderState.CLOSED


# -- heartbeats ----------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-TIME-1")
def test_a_heartbeat_is_sent_at_every_interval() -> None:
    subject = active()
    beats = []
    for _ in range(5):
        deadline = subject.sender.next_deadline_s()
        assert deadline is not None
        assert subject.tick(deadline - 0.01) == []
        beats.append((deadline, types(subject.tick(deadline))))
    assert beats == [(float(i), [HEARTBEAT]) for i in (1, 2, 3, 4, 5)]


@pytest.mark.req("GC-TIME-1")
def test_heartbeats_find_their_way_between_the_bursts_of_a_message() -> None:
    subject = ingress(burst_datagrams_max=4)
    subject.start()
    subject.sender.compose([], 1, writer(bytes(30_000)), 0.5)
    now_s, order = 0.5, []
    while (burst := subject.sender.next_burst(Slab())) is not None:
        assert burst.count <= 4
        order += types(subject.keep([burst]))
        now_s += 0.4
        order += types(subject.tick(now_s))
    assert order.count(DATA) == 22
    assert order.count(HEARTBEAT) == 2
    assert [Header.unpack(datagram).sequence for datagram in subject.sent] == list(range(3 + 22 + 2))
    beats = [said(datagram) for datagram in subject.sent if types([datagram]) == [HEARTBEAT]]
    assert [beat.messages_sent for beat in beats] == [0, 0], "a message counts when all of it was built"
    assert said(subject.tick(9.0)[0]).messages_sent == 1


@pytest.mark.req("GC-TIME-3")
def test_a_late_timer_sends_one_heartbeat_and_finds_its_rhythm_again() -> None:
    subject = active()
    assert types(subject.tick(7.3)) == [HEARTBEAT]
    assert subject.tick(7.3) == []
    deadline = subject.sender.next_deadline_s()
    assert deadline is not None
    assert 7.3 < deadline <= 8.3
    subject = active()
    assert types(subject.tick(1.1)) == [HEARTBEAT]
    assert subject.sender.next_deadline_s() == 2.0


@pytest.mark.req("GC-TIME-3")
def test_a_late_end_of_the_announcement_is_an_end_all_the_same() -> None:
    subject = ingress(previous_epoch=0)
    subject.start()
    assert types(subject.tick(50.0)) == [HEARTBEAT]
    assert subject.sender.state is SenderState.ACTIVE
    assert subject.sender.next_deadline_s() == 51.0


@pytest.mark.req("GC-TIME-4")
def test_time_that_steps_back_is_no_time_passed() -> None:
    subject = ingress()
    subject.start(100.0)
    assert subject.tick(50.0) == []
    subject.message(b"", [run(-1, 0, 0)], now_s=40.0)
    assert subject.sender.next_deadline_s() == 101.0
    assert types(subject.tick(101.0)) == [DATA, HEARTBEAT], (
        "the message counts as sent at 100, so this is an idle second"
    )
    subject.message(b"", [run(0, 1, 1)], now_s=101.5)
    subject.message(b"", [run(1, 2, 2)], now_s=0.0)
    assert types(subject.tick(102.0)) == [HEARTBEAT], "half a second is not idle, whatever the clock did"


@given(st.lists(st.floats(0, 5), max_size=30), st.booleans())
@settings(deadline=None)
@pytest.mark.req("GC-TIME-3", "GC-TIME-1")
def test_a_timer_is_never_due_when_it_was_just_called(pauses: list[float], known: bool) -> None:
    subject = ingress(previous_epoch=PREVIOUS if known else 0)
    subject.start()
    now_s = 0.0
    for pause in pauses:
        now_s += pause
        due = subject.sender.next_deadline_s()
        assert due is not None
        assert bool(subject.tick(now_s)) == (now_s >= due)
        later = subject.sender.next_deadline_s()
        assert later is not None
        assert now_s < later <= now_s + 1.0


# -- what an announcement says -------------------------------------------------------------------------------------


@pytest.mark.req("GC-WIRE-8")
def test_every_announcement_says_the_same_of_the_session_and_counts_on() -> None:
    subject = ingress(
        previous_epoch=0,
        heartbeat_interval_s=0.25,
        interruption_timeout_s=0.5,
        mtu_bytes=9_000,
        message_bytes_max=70_000,
    )
    subject.start()
    for now_s in (0.25, 0.5):
        subject.tick(now_s)
    subject.message(b"x" * 20_000, record_count=30, now_s=0.5)
    subject.sender.counters.records_filtered = 4
    subject.tick(0.75)
    subject.stop()
    datagrams = [datagram for datagram in subject.sent if types([datagram]) != [DATA]]
    assert types(datagrams) == [STARTUP] * 4 + [HEARTBEAT] * 2 + [SHUTDOWN] * 3
    counted = [(a.messages_sent, a.records_sent, a.records_filtered) for a in map(said, datagrams)]
    assert counted == [(0, 0, 0)] * 5 + [(1, 30, 4)] * 4
    phases = [said(datagram).phase for datagram in datagrams]
    assert phases == [Phase.ANNOUNCING] * 4 + [Phase.ACTIVE] * 2 + [Phase.CLOSING] * 3
    fixed = {attrs.evolve(said(d), messages_sent=0, records_sent=0, records_filtered=0, phase=1) for d in datagrams}
    assert fixed == {
        Announcement(
            previous_epoch=0,
            messages_sent=0,
            records_sent=0,
            records_filtered=0,
            heartbeat_interval_ms=250,
            interruption_timeout_ms=500,
            message_bytes_max=70_000,
            mtu_bytes=9_000,
            symbol_bytes_max=9_000 - 28 - 56,
            phase=1,
        )
    }
    assert all(said(datagram).well_formed(Header.unpack(datagram)) for datagram in datagrams)


# -- messages ------------------------------------------------------------------------------------------------------


@given(
    bodies=st.lists(st.integers(0, 4_000), max_size=8),
    mtu_bytes=st.integers(200, 1_500),
    ip_header_bytes=st.sampled_from([28, 48]),
    burst_datagrams_max=st.integers(1, 64),
)
@settings(deadline=None)
@pytest.mark.req("GC-DLV-2", "GC-WIRE-5", "GC-WIRE-6", "GC-WIRE-10")
def test_datagrams_fit_the_mtu_and_are_numbered_without_a_hole(
    bodies: list[int], mtu_bytes: int, ip_header_bytes: int, burst_datagrams_max: int
) -> None:
    subject = ingress(mtu_bytes=mtu_bytes, ip_header_bytes=ip_header_bytes, burst_datagrams_max=burst_datagrams_max)
    subject.start()
    for number, size in enumerate(bodies):
        built = subject.message(bytes([number]) * size, record_count=3, now_s=float(number))
        assert {Header.unpack(datagram).message for datagram in built} == {number}
        whole = b"".join(datagram[48:-8] for datagram in built)[: Header.unpack(built[0]).message_bytes]
        opened = open_message(memoryview(whole))
        assert bytes(opened.body) == bytes([number]) * size
        assert (opened.first_record, opened.record_count) == (3 * number, 3)
        subject.tick(float(number))
    subject.stop()
    assert all(len(datagram) + ip_header_bytes <= mtu_bytes for datagram in subject.sent)
    assert [Header.unpack(datagram).sequence for datagram in subject.sent] == list(range(len(subject.sent)))
    messages = [Header.unpack(datagram).message for datagram in subject.sent if types([datagram]) == [DATA]]
    assert messages == sorted(messages), "the symbols of a message go before those of the next"
    counters = subject.sender.counters
    assert (counters.datagrams, counters.bytes) == (len(subject.sent), sum(map(len, subject.sent)))
    assert (counters.messages, counters.records) == (len(bodies), 3 * len(bodies))


@pytest.mark.req("GC-DLV-3")
def test_a_message_over_the_limit_is_refused_and_uses_no_number() -> None:
    subject = ingress(message_bytes_max=1_000)
    subject.start()
    fits = 1_000 - MESSAGE_OVERHEAD_BYTES - 1
    assert len(subject.message(bytes(fits))) == 1
    with pytest.raises(LocalProtocolError, match="a message of 1001 bytes is longer than the limit of 1000 bytes"):
        subject.message(bytes(fits + 1))
    with pytest.raises(LocalProtocolError, match="longer than the limit"):
        subject.message(bytes(fits), [run(-1, 0, 0)])
    assert subject.sender.next_burst(Slab()) is None
    assert subject.sender.bursts_left == 0
    (after,) = subject.message(b"after")
    header = Header.unpack(after)
    assert (header.message, header.sequence) == (1, 4)
    assert open_message(memoryview(after[48:-8])).first_record == 1
    assert types(subject.stop()) == [SHUTDOWN] * 3, "no summary of what was never sent"


def test_a_body_that_cannot_be_written_uses_no_number() -> None:
    def fail(buffer: bytearray, offset: int) -> None:
        raise ZeroDivisionError

    subject = active()
    with pytest.raises(ZeroDivisionError):
        subject.sender.compose([], 1, fail, 0.0)
    assert Header.unpack(subject.message(b"x")[0]).message == 0


def test_one_message_is_finished_before_the_next_begins() -> None:
    subject = active()
    subject.sender.compose([], 1, writer(b"x"), 0.0)
    with pytest.raises(LocalProtocolError, match="not finished"):
        subject.sender.compose([], 1, writer(b"y"), 0.0)
    with pytest.raises(LocalProtocolError, match="not finished"):
        subject.stop()
    assert subject.sender.bursts_left == 1
    burst = subject.sender.next_burst(Slab())
    assert burst is not None
    assert subject.sender.next_burst(Slab()) is None


# -- positions and the end -----------------------------------------------------------------------------------------


def told(datagrams: list[bytes]) -> list[list[Run]]:
    """The runs of the `positions` messages among these datagrams; all messages must be such."""
    wholes: dict[int, bytes] = {}
    for datagram in datagrams:
        header = Header.unpack(datagram)
        if header.type == DATA:
            symbols = wholes.get(header.message, b"") + datagram[48:-8]
            wholes[header.message] = symbols[: header.message_bytes]
    messages = [open_message(memoryview(whole)) for whole in wholes.values()]
    assert all(message.kind is MessageKind.POSITIONS and not message.record_count for message in messages)
    return [message.runs for message in messages]


@pytest.mark.req("GC-DLV-17")
def test_when_nothing_was_sent_for_an_interval_the_last_positions_are_told() -> None:
    subject = active()
    subject.message(b"", [run(-1, 0, 4), run(-1, 7, 9, "t")], now_s=0.5)
    assert types(subject.tick(1.0)) == [HEARTBEAT], "half an interval is not idle"
    due = subject.tick(2.0)
    assert types(due) == [DATA, HEARTBEAT]
    assert told(due) == [[Run("s", 0, 4, 4, 4, 0, 0, False, 0), Run("t", 0, 9, 9, 9, 0, 7, False, 0)]]
    assert said(due[-1]).messages_sent == 2
    assert types(subject.tick(3.0)) == [HEARTBEAT], "once"
    subject.message(b"", [run(4, 5, 5)], now_s=3.1)
    subject.tick(4.0)
    assert told(subject.tick(5.0)) == [[Run("s", 0, 5, 5, 5, 0, 0, False, 0)]]


@pytest.mark.req("GC-DLV-16")
def test_what_is_sent_tells_the_chain_of_its_records_also_behind_a_message_that_was_refused() -> None:
    subject = ingress(message_bytes_max=2_000)
    subject.start()
    subject.message(b"", [])
    subject.message(b"", [run(-1, 3, 4), run(40, 42, 42, "t")])
    with pytest.raises(LocalProtocolError, match="longer than the limit"):
        subject.message(bytes(2_000), [run(-1, 0, 1)])
    subject.message(b"", [run(4, 5, 5)])
    assert told(subject.stop()) == [[Run("t", 0, 42, 42, 42, 0, 42, True, 1), Run("s", 0, 5, 5, 5, 0, 3, False, 1)]]


@pytest.mark.req("GC-DLV-17")
def test_no_summary_breaks_into_a_message_or_a_busy_link() -> None:
    subject = active()
    subject.message(b"", [run(-1, 0, 0)], now_s=0.0)
    subject.sender.compose([run(0, 1, 1)], 1, writer(bytes(200_000)), 0.0)
    first = subject.sender.next_burst(Slab())
    assert first is not None
    subject.keep([first])
    assert types(subject.tick(1.0)) == [HEARTBEAT]
    while (burst := subject.sender.next_burst(Slab())) is not None:
        subject.keep([burst])
    for tenth in range(11, 60):
        subject.message(b"", [run(tenth, tenth + 1, tenth + 1)], now_s=tenth / 10)
        assert DATA not in types(subject.tick(tenth / 10))


@pytest.mark.req("GC-DLV-17")
def test_a_busy_link_tells_positions_when_no_more_can_be_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.protocol.positions.POSITIONS_TRACKED_MAX", 2)
    subject = active()
    subject.message(b"", [run(-1, 0, 0), run(-1, 0, 0, "t")], now_s=0.9)
    assert types(subject.tick(1.0)) == [DATA, HEARTBEAT]


@pytest.mark.req("GC-DLV-17", "GC-DLV-3")
def test_a_summary_longer_than_a_message_may_be_is_told_in_several() -> None:
    subject = ingress(message_bytes_max=2_000)
    subject.start()
    for i in range(100):
        subject.message(b"", [run(-1, i, i, f"stream {i}" + "x" * 100)])
    runs = [entry for message in told(subject.stop()) for entry in message]
    assert [entry.last for entry in runs] == list(range(100))


@pytest.mark.req("GC-SESS-4", "GC-DLV-17")
def test_a_session_ends_with_the_last_positions_and_shutdowns_and_nothing_after_them() -> None:
    subject = active()
    subject.message(b"", [run(-1, 0, 4)], now_s=0.5)
    last = subject.stop()
    assert types(last) == [DATA] + [SHUTDOWN] * 3
    assert told(last) == [[Run("s", 0, 4, 4, 4, 0, 0, False, 0)]]
    assert {(said(d).phase, said(d).messages_sent, said(d).records_sent) for d in last[1:]} == {(Phase.CLOSING, 2, 1)}
    assert subject.sender.state is SenderState.CLOSED
    assert subject.sender.next_deadline_s() is None
    assert subject.tick(1e6) == []
    assert subject.stop() == []
    with pytest.raises(LocalProtocolError, match="'closed'"):
        subject.message(b"")
    with pytest.raises(LocalProtocolError, match="'closed'"):
        subject.start()


@pytest.mark.req("GC-SESS-4")
def test_an_ingress_that_stops_while_it_announces_itself_says_goodbye_too() -> None:
    subject = ingress(previous_epoch=0)
    subject.start()
    assert types(subject.stop()) == [SHUTDOWN] * 3
    assert subject.tick(100.0) == []


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"previous_epoch": 200}, "epoch 200 is not above the previous one, 200"),
        ({"epoch": 0, "previous_epoch": 0}, "epoch 0 is not above"),
        ({"epoch": 2**64}, "is not above"),
        ({"heartbeat_interval_s": 0}, "interruption timeout"),
        ({"heartbeat_interval_s": 4}, "interruption timeout is shorter than the heartbeat interval"),
        ({"mtu_bytes": 148}, "an MTU of 148 bytes cannot be used"),
        ({"mtu_bytes": 168, "ip_header_bytes": 48}, "an MTU of 168 bytes cannot be used"),
        ({"mtu_bytes": 65_536}, "an MTU of 65536 bytes cannot be used or announced"),
        ({"message_bytes_max": MESSAGE_BYTES_MAX + 1}, "a message limit of 67108865 bytes is too large"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], sentence: str) -> None:
    usable = SenderSettings(link_id=LINK_ID, epoch=EPOCH, previous_epoch=PREVIOUS)
    with pytest.raises(LocalProtocolError, match=sentence):
        attrs.evolve(usable, **changes)


@pytest.mark.req("GC-WIRE-6")
@pytest.mark.parametrize(("mtu_bytes", "ip_header_bytes"), [(149, 28), (169, 48), (65_535, 28), (65_535, 48)])
def test_the_smallest_and_the_largest_mtu_work(mtu_bytes: int, ip_header_bytes: int) -> None:
    subject = ingress(mtu_bytes=mtu_bytes, ip_header_bytes=ip_header_bytes)
    subject.start()
    subject.message(bytes(200_000))
    subject.stop()
    longest = max(map(len, subject.sent))
    assert mtu_bytes - ip_header_bytes - 20_000 < longest <= mtu_bytes - ip_header_bytes
