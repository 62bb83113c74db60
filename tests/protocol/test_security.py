"""Sealed datagrams: the two halves of the core against an implementation of the specification by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.errors import LocalProtocolError
from gapconn.protocol.events import (
    ForeignLinkDetected,
    LinkInterrupted,
    LinkRestored,
    MessageDelivered,
    UnverifiedCleared,
    UnverifiedDetected,
)
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import DropReason, Flag, SecurityMode
from gapconn.protocol.security import CIPHERS_MAX, Keys, Opener, Sealer, session_key
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.states import ReceiverState
from gapconn.protocol.wire import Announcement, Header, Slab
from tests.protocol.frames import EPOCH, LINK_ID, Egress, Session, burst, bursts, plain, split, with_header
from tests.protocol.sealing import OTHER_SECRET, SECRETS, hkdf, seal, seal_payload, unseal, unsealed

KEYS = Keys(use=1, secrets=SECRETS)


def sealed_egress(keys: Keys = KEYS, **settings: Any) -> Egress:
    """An egress of the sealed link."""
    return Egress(LinkReceiver(ReceiverSettings(link_id=LINK_ID, keys=keys, **settings), now_s=0.0))


def sealing(keys: Keys | None = KEYS, **changes: Any) -> LinkSender:
    """An ingress of the sealed link, that may send at once."""
    options = {"link_id": LINK_ID, "epoch": EPOCH, "previous_epoch": EPOCH - 1, "keys": keys, **changes}
    return LinkSender(SenderSettings(**options))


def sent(sender: LinkSender, body: bytes) -> list[bytes]:
    """The datagrams of a message."""
    sender.compose([], 1, lambda buffer, offset: buffer.__setitem__(slice(offset, None), body), 0.0)
    datagrams = []
    while (each := sender.next_burst(Slab())) is not None:
        datagrams += split(each)
    return datagrams


def started(sender: LinkSender) -> list[bytes]:
    return [datagram for each in sender.start(0.0) for datagram in split(each)]


def bodies(events: list[Any]) -> list[bytes]:
    return [bytes(event.body) for event in events if isinstance(event, MessageDelivered)]


def state_of(egress: Egress) -> object:
    """All that a datagram could change, but for the counters of what was dropped."""
    receiver = egress.receiver
    return (
        receiver.epoch,
        receiver.state,
        receiver.silent_s(egress.now_s),
        receiver.conflict,
        receiver.unverified,
        receiver.key_id,
        receiver.datagrams_missed,
        receiver.next_message,
        receiver.next_record,
        receiver.held_messages,
        receiver.held_bytes,
        receiver.announcement,
        receiver.ended,
    )


# -- the key -------------------------------------------------------------------------------------------------------


def test_hkdf_by_hand_is_that_of_rfc_5869() -> None:
    """Its test case 1, of which the first 32 bytes are asked for."""
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    made = hkdf(b"\x0b" * 22, bytes(range(13)), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"))
    assert made.hex() == expected


@pytest.mark.req("GC-SEC-2")
def test_the_session_key_is_derived_as_specified() -> None:
    salt = bytes.fromhex("0102030405060708 0000000a")
    info = b"gapconn 1 \x00\x00\x00\x07\x02"
    made = session_key(OTHER_SECRET, link_id=7, key_id=2, epoch=0x0102030405060708, generation=10)
    assert made == hkdf(OTHER_SECRET, salt, info)


@pytest.mark.req("GC-SEC-2")
def test_each_session_key_is_its_own() -> None:
    usual = {"link_id": 7, "key_id": 2, "epoch": 100, "generation": 0}
    keys = {session_key(SECRETS[1], **usual), session_key(SECRETS[2], **usual)}
    keys |= {session_key(SECRETS[1], **{**usual, name: value + 1}) for name, value in usual.items()}
    assert len(keys) == 6


# -- sealing -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 200_000), st.sampled_from([576, 1_500, 9_000, 65_535]), st.sampled_from(sorted(SECRETS)))
@settings(deadline=None, max_examples=30)
@pytest.mark.req("GC-SEC-1", "GC-SEC-2", "GC-WIRE-6")
def test_what_is_sealed_is_opened_by_hand(length: int, mtu_bytes: int, key_id: int) -> None:
    """And is the same as a link that is not sealed would send, but for the seal."""
    keys = Keys(use=key_id, secrets=SECRETS)
    body = bytes(i % 251 for i in range(length))
    sender = sealing(keys, mtu_bytes=mtu_bytes)
    twin = sealing(keys=None, mtu_bytes=mtu_bytes - 8)  # as long symbols, beside a check that is shorter than a tag
    datagrams = [*started(sender), *sent(sender, body)]
    twins = [*started(twin), *sent(twin, body)]
    assert len(datagrams) == len(twins)
    for datagram, without in zip(datagrams, twins, strict=True):
        header = Header.unpack(datagram)
        assert (header.flags, header.key_id) == (Flag.SEALED, key_id)
        assert len(datagram) == len(without) + 8 <= mtu_bytes - 28
        if header.type == 2:
            assert unsealed(datagram) == without
            assert without[48:-8] not in datagram
    said = unseal(datagrams[0])
    assert said is not None
    assert Announcement.unpack(said).security_mode == SecurityMode.AES_256_GCM


@pytest.mark.req("GC-SEC-7", "GC-WIRE-5")
def test_no_nonce_is_used_twice_with_a_key() -> None:
    """Not with heartbeats between the bursts, not over a change of the key and back."""
    sender = sealing()
    datagrams = started(sender)
    for use in (1, 2, 1, 1, 255, 2):
        sender.use_keys(Keys(use=use, secrets=SECRETS))
        sender.compose([], 1, lambda buffer, offset: buffer.__setitem__(slice(offset, None), bytes(150_000)), 0.0)
        while (each := sender.next_burst(Slab())) is not None:
            datagrams += split(each)
            datagrams += [d for due in sender.handle_timeout(sender.next_deadline_s() or 0.0) for d in split(due)]
    datagrams += [d for each in sender.stop() for d in split(each)]
    used = {(d[15:28], d[20:32]) for d in datagrams}
    assert len(used) == len(datagrams) > 600
    assert [Header.unpack(d).sequence for d in datagrams] == list(range(len(datagrams)))


@pytest.mark.parametrize("first", [2**32 - 3, 2**32 - 1, 2**32, 2**33 - 40])
@pytest.mark.req("GC-SEC-2")
def test_the_session_key_changes_with_the_upper_half_of_the_sequence(first: int) -> None:
    sender = sealing()
    startup = started(sender)[0]
    sender._sequence = first  # otherwise it takes an hour to get there
    body = bytes(60_000)
    datagrams = sent(sender, body)
    keys = {bytes(d[24:28]) for d in datagrams}
    assert len(keys) == (1 if first == 2**32 else 2)
    assert all(unseal(d) is not None for d in datagrams)
    egress = sealed_egress()
    egress.hear(startup)
    egress.receiver._window.take(first - 2, 1)
    egress.receiver._window.take(first - 1, 1)
    (joined,) = bursts(datagrams)
    egress.receiver.receive(joined, 0.0)
    assert bodies(egress.receiver.take_events()) == [body]


def test_a_session_is_sealed_from_its_start_or_never() -> None:
    with pytest.raises(LocalProtocolError):
        sealing(keys=None).use_keys(KEYS)
    with pytest.raises(LocalProtocolError):
        Egress.make().receiver.use_keys(KEYS)


def test_the_smallest_mtu_takes_the_tag_into_account() -> None:
    with pytest.raises(LocalProtocolError, match="an MTU of 156 bytes cannot be used"):
        sealing(mtu_bytes=156)
    assert max(map(len, sent_after_start(sealing(mtu_bytes=157), bytes(32)))) == 129


def sent_after_start(sender: LinkSender, body: bytes) -> list[bytes]:
    return [*started(sender), *sent(sender, body)]


# -- opening -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 9_000), min_size=1, max_size=6),
    st.sampled_from([1, 2, 7, 64]),
    st.lists(st.sampled_from([1, 2, 255]), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=50)
@pytest.mark.req("GC-SEC-1", "GC-SEC-2", "GC-SEC-4")
def test_what_is_sealed_by_hand_is_taken_in(lengths: list[int], rows_max: int, key_ids: list[int]) -> None:
    session = Session(symbol_bytes=100)
    messages = [bytes([i]) * length for i, length in enumerate(lengths)]
    made = [session.startup(), *(d for message in messages for d in session.message(message)), session.shutdown()]
    datagrams = [seal(d, SECRETS[key_ids[i % len(key_ids)]], key_ids[i % len(key_ids)]) for i, d in enumerate(made)]
    egress = sealed_egress()
    for each in bursts(datagrams, rows_max):
        egress.receiver.receive(each, 0.0)
        each.slab.flat[:] = 0xFF
    assert bodies(egress.receiver.take_events()) == messages
    assert egress.dropped == {}
    assert (egress.receiver.ended, egress.receiver.key_id) == (True, key_ids[(len(made) - 1) % len(key_ids)])


def attacked(session: Session) -> Egress:
    """An egress that has heard the beginning of this session, and has a message half."""
    egress = sealed_egress()
    startup, (first, *_) = session.startup(), session.message(bytes(range(200)))
    egress.hear(seal(startup), seal(first))
    assert egress.receiver.held_messages == 1
    return egress


REASON_OF_BYTE = {
    0: DropReason.BAD_MAGIC,
    1: DropReason.BAD_MAGIC,
    2: DropReason.UNSUPPORTED_VERSION,
    8: DropReason.FOREIGN_LINK,
    9: DropReason.FOREIGN_LINK,
    10: DropReason.FOREIGN_LINK,
    11: DropReason.FOREIGN_LINK,
    15: DropReason.UNKNOWN_KEY,
}


@pytest.mark.parametrize("kind", ["heartbeat", "shutdown", "startup of a successor", "data", "data of a newcomer"])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.req("GC-SEC-3")
def test_no_byte_can_be_changed(kind: str, joined: bool) -> None:
    """Each of the header, the payload and the tag, in several bits; nothing moves, not even the silence."""
    session = Session()
    egress = attacked(session)
    newcomer = Session(epoch=EPOCH + 1, previous_epoch=EPOCH)
    make: dict[str, Callable[[], bytes]] = {
        "heartbeat": session.heartbeat,
        "shutdown": session.shutdown,
        "startup of a successor": newcomer.startup,
        "data": lambda: session.message(bytes(20))[0],
        "data of a newcomer": lambda: newcomer.message(bytes(20))[0],
    }
    good = seal(make[kind]())
    egress.now_s += 1.0
    before = state_of(egress)
    thrown = 0
    for place in range(len(good)):
        for change in (0x01, 0x02, 0x80, 0xFF):
            bad = good[:place] + bytes([good[place] ^ change]) + good[place + 1 :]
            reason = REASON_OF_BYTE.get(place, DropReason.BAD_CHECK)
            if place == 5 and change & Flag.SEALED:
                reason = DropReason.WRONG_SECURITY_MODE
            counted = egress.dropped.get(reason, 0)
            egress.receiver.receive(burst(bad, bad) if joined else burst(bad), egress.now_s)
            thrown += 2 if joined else 1
            assert egress.dropped[reason] == counted + (2 if joined else 1)
    assert sum(egress.dropped.values()) == thrown
    events = [event for event in egress.receiver.take_events() if not isinstance(event, ForeignLinkDetected)]
    assert events == []
    assert state_of(egress) == before
    egress.hear(good)
    assert state_of(egress) != before or egress.dropped[DropReason.CONFLICT] == 1, "the unchanged one is believed"


@given(st.data())
@settings(deadline=None, max_examples=60)
@pytest.mark.req("GC-SEC-3")
def test_good_and_bad_datagrams_of_a_burst_are_told_apart(data: st.DataObject) -> None:
    session = Session()
    startup, good = session.startup(), session.message(bytes(1_000))
    fate = [data.draw(st.sampled_from(["good", "good", "flip", "secret", "key", "link", "unsealed"])) for _ in good]
    datagrams = []
    for datagram, what in zip(good, fate, strict=True):
        sealed = seal(datagram)
        place = data.draw(st.integers(16, len(sealed) - 1))
        made = {
            "good": sealed,
            "flip": sealed[:place] + bytes([sealed[place] ^ 4]) + sealed[place + 1 :],
            "secret": seal(datagram, OTHER_SECRET),
            "key": seal(datagram, OTHER_SECRET, 9),
            "link": seal(with_header(datagram, link_id=LINK_ID + 1)),
            "unsealed": datagram[:-8] + bytes(16),
        }
        datagrams.append(made[what])
    egress = sealed_egress()
    egress.hear(seal(startup))
    for each in bursts(datagrams):
        egress.receiver.receive(each, 0.0)
    expected = {
        DropReason.BAD_CHECK: fate.count("flip") + fate.count("secret"),
        DropReason.UNKNOWN_KEY: fate.count("key"),
        DropReason.FOREIGN_LINK: fate.count("link"),
        DropReason.WRONG_SECURITY_MODE: fate.count("unsealed"),
    }
    assert egress.dropped == {reason: count for reason, count in expected.items() if count}
    assert egress.receiver.datagrams_missed == max((i + 1 for i, w in enumerate(fate) if w == "good"), default=0) - (
        fate.count("good")
    )


@pytest.mark.parametrize("how", ["not sealed", "another secret", "another key", "flag alone"])
@pytest.mark.req("GC-SEC-3", "GC-SEC-6")
def test_forged_announcements_move_nothing(how: str) -> None:
    """StartUp, HeartBeat and Shutdown, of the session and of a successor: not the link, nor the timers."""
    session = Session()
    egress = attacked(session)
    forgers = [attrs.evolve(session), Session(epoch=EPOCH + 9, previous_epoch=EPOCH), Session(epoch=EPOCH - 1)]
    egress.now_s += 1.0
    before = state_of(egress)
    deadline = egress.receiver.next_deadline_s()
    forge: dict[str, Callable[[bytes], bytes]] = {
        "not sealed": lambda d: d,
        "another secret": lambda d: seal(d, OTHER_SECRET),
        "another key": lambda d: seal(d, OTHER_SECRET, 3),
        "flag alone": lambda d: with_header(d, flags=1, key_id=1) + bytes(8),
    }
    for forger in forgers:
        for datagram in (forger.startup(), forger.heartbeat(messages_sent=0), forger.shutdown(), *forger.message(b"x")):
            assert egress.hear(forge[how](datagram)) == []
    assert (state_of(egress), egress.receiver.next_deadline_s()) == (before, deadline)
    assert sum(egress.dropped.values()) >= 12


@pytest.mark.req("GC-SEC-5")
def test_an_egress_without_keys_drops_what_is_sealed() -> None:
    session = Session()
    egress = Egress.make()
    assert egress.hear(seal(session.startup())) == []
    assert egress.dropped == {DropReason.WRONG_SECURITY_MODE: 1}
    assert egress.wait(2.0) == []


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (("short", "magic", "version", "link", "flag", "key", "tag"), DropReason.TOO_SHORT),
        (("magic", "version", "link", "flag", "key", "tag"), DropReason.BAD_MAGIC),
        (("version", "link", "flag", "key", "tag"), DropReason.UNSUPPORTED_VERSION),
        (("link", "flag", "key", "tag", "type"), DropReason.FOREIGN_LINK),
        (("flag", "key", "tag", "type"), DropReason.WRONG_SECURITY_MODE),
        (("key", "tag", "type", "form"), DropReason.UNKNOWN_KEY),
        (("tag", "type", "form"), DropReason.BAD_CHECK),
        (("type", "form", "epoch"), DropReason.UNKNOWN_TYPE),
        (("form", "epoch"), DropReason.MALFORMED),
        (("epoch",), DropReason.STALE_SESSION),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.req("GC-SEC-3", "GC-WIRE-4")
def test_of_several_faults_the_first_counts(faults: tuple[str, ...], reason: DropReason, joined: bool) -> None:
    session = Session()
    egress = attacked(session)
    header = Header.unpack(seal(session.heartbeat()))
    changes: dict[str, dict[str, int]] = {
        "magic": {"magic": 0x4744},
        "version": {"version": 2},
        "link": {"link_id": LINK_ID + 1},
        "flag": {"flags": 0},
        "key": {"key_id": 77},
        "type": {"type": 9},
        "form": {"symbol": 1},
        "epoch": {"epoch": EPOCH - 1},
    }
    for fault in faults:
        header = attrs.evolve(header, **changes.get(fault, {}))
    said = Announcement.unpack(session.heartbeat()[48:-8])
    datagram = seal_payload(header.pack(), said.pack(), SECRETS.get(header.key_id, OTHER_SECRET))
    if "tag" in faults:
        datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
    if "short" in faults:
        datagram = datagram[:63]
    egress.receiver.receive(burst(datagram, datagram) if joined else burst(datagram), 0.0)
    assert egress.dropped == {reason: 2 if joined else 1}


# -- replays -------------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-SEC-3", "GC-SESS-16")
def test_a_replay_is_dropped_and_is_no_sign_of_life() -> None:
    session = Session()
    recorded = [seal(d) for d in (session.startup(), *session.message(bytes(500)), session.heartbeat())]
    egress = sealed_egress()
    egress.hear(recorded)
    egress.wait(2.0)
    for _ in range(3):
        assert egress.hear(recorded) == []
    assert egress.dropped == {DropReason.DUPLICATE: 3 * len(recorded)}
    assert egress.receiver.silent_s(egress.now_s) == 2.0
    (interrupted,) = egress.wait(1.0)
    assert isinstance(interrupted, LinkInterrupted)
    assert egress.hear(recorded) == [], "the link is not restored by it"
    (restored,) = egress.hear(seal(session.heartbeat()))
    assert isinstance(restored, LinkRestored)


@pytest.mark.req("GC-SESS-16")
def test_without_keys_a_copy_is_no_sign_of_life_either() -> None:
    session = Session()
    startup = session.startup()
    egress = Egress.make()
    egress.hear(startup)
    egress.hear(startup, after_s=2.0)
    egress.hear(Session(sequence=2_000_000).heartbeat(), after_s=0.5)
    assert egress.receiver.silent_s(egress.now_s) == 2.5
    assert egress.dropped == {DropReason.DUPLICATE: 1, DropReason.UNCONFIRMED_JUMP: 1}
    egress.hear(Session(sequence=300_000).heartbeat())
    assert egress.receiver.silent_s(egress.now_s) == 0.0
    egress.hear(session.heartbeat(), after_s=1.0)
    assert egress.receiver.silent_s(egress.now_s) == 1.0, "behind the window"


@pytest.mark.req("GC-SEC-3", "GC-SESS-5")
def test_a_recorded_session_never_gets_the_link_back() -> None:
    old, new = Session(), Session(epoch=EPOCH + 1, previous_epoch=EPOCH)
    recorded = [seal(d) for d in (old.startup(), *old.message(bytes(500)), old.heartbeat(), old.shutdown())]
    egress = sealed_egress()
    egress.hear(recorded[:-1])
    egress.hear(seal(new.startup()))
    egress.hear(recorded)
    assert egress.receiver.epoch == EPOCH + 1
    assert egress.dropped == {DropReason.STALE_SESSION: len(recorded)}
    egress.wait(10.0)
    assert bodies(egress.hear(recorded)) == []
    assert egress.receiver.epoch == EPOCH + 1


def unverified(egress: Egress) -> bool:
    return egress.receiver.unverified


# -- the alarm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forge", "reason", "key_id"),
    [
        (lambda d: d, DropReason.WRONG_SECURITY_MODE, 0),
        (lambda d: seal(d, OTHER_SECRET, 9), DropReason.UNKNOWN_KEY, 9),
        (lambda d: seal(d, OTHER_SECRET), DropReason.BAD_CHECK, 1),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.req("GC-SEC-8")
def test_what_cannot_be_verified_is_told_while_the_link_is_not_heard(
    forge: Any, reason: DropReason, key_id: int, joined: bool
) -> None:
    wrong, right = Session(), Session(epoch=EPOCH + 1)
    egress = sealed_egress()

    def hear_wrong() -> list[Any]:
        datagram = forge(wrong.heartbeat())
        egress.receiver.receive(burst(datagram, datagram) if joined else burst(datagram), egress.now_s)
        return egress.receiver.take_events()

    assert hear_wrong() == [UnverifiedDetected(reason=reason, key_id=key_id)]
    egress.wait(1.0)
    assert hear_wrong() == [], "told once"
    assert unverified(egress)
    assert UnverifiedCleared() in egress.hear(seal(right.startup()))
    assert not unverified(egress)
    assert hear_wrong() == [], "while the link is heard, it is only counted"
    assert egress.receiver.state is ReceiverState.FOLLOWING
    egress.wait(3.0)
    assert hear_wrong() == [UnverifiedDetected(reason=reason, key_id=key_id)]
    assert egress.wait(2.9) == []
    assert egress.wait(0.2) == [UnverifiedCleared()]
    assert egress.receiver.counters.unverified == 2


@pytest.mark.req("GC-SEC-8")
def test_a_link_without_keys_has_no_such_alarm() -> None:
    egress = Egress.make()
    assert egress.hear(seal(Session().startup()), b"x" * 70) == []
    assert not egress.receiver.unverified


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("GC-SEC-4")
def test_the_key_changes_inside_a_message_and_nothing_is_lost() -> None:
    """First the egress has the new one, then the ingress uses it, then the egress forgets the old one."""
    one, both, two = ({1: SECRETS[1]}, {1: SECRETS[1], 2: SECRETS[2]}, {2: SECRETS[2]})
    sender, egress = sealing(Keys(use=1, secrets=one)), sealed_egress(Keys(use=1, secrets=one))
    egress.hear(started(sender))
    body = bytes(i % 253 for i in range(300_000))
    steps: list[Any] = [
        lambda: egress.receiver.use_keys(Keys(use=1, secrets=both)),
        lambda: sender.use_keys(Keys(use=2, secrets=both)),
        lambda: egress.receiver.use_keys(Keys(use=1, secrets={**two, 1: OTHER_SECRET})),
        lambda: egress.receiver.use_keys(Keys(use=2, secrets=two)),
    ]
    used = []
    sender.compose([], 1, lambda buffer, offset: buffer.__setitem__(slice(offset, None), body), 0.0)
    while (each := sender.next_burst(Slab())) is not None:
        used.append(Header.unpack(each.bytes).key_id)
        egress.receiver.receive(each, 0.0)
        if steps:
            steps.pop(0)()
    assert used == [1, 1, *[2] * (len(used) - 2)]
    assert not steps
    assert bodies(egress.receiver.take_events()) == [body]
    assert (egress.dropped, egress.receiver.key_id, sender.key_id) == ({}, 2, 2)
    egress.hear(seal(Session(sequence=10_000).heartbeat()))
    assert egress.dropped == {DropReason.UNKNOWN_KEY: 1}


@pytest.mark.req("GC-SEC-3", "GC-SEC-4")
def test_forged_names_do_not_drive_out_a_session_key(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(key: bytes) -> AESGCM:
        made.append(key)
        return AESGCM(key)

    session = Session()
    egress = attacked(session)
    for epoch in range(EPOCH + 1, EPOCH + 100):
        egress.hear(seal(Session(epoch=epoch).heartbeat(), OTHER_SECRET))
    monkeypatch.setattr("gapconn.protocol.security.AESGCM", counted)
    egress.hear(seal(session.heartbeat()))
    assert made == []
    for epoch in range(EPOCH - CIPHERS_MAX, EPOCH):
        egress.hear(seal(Session(epoch=epoch).heartbeat()))
    egress.hear(seal(session.heartbeat()))
    assert len(made) == CIPHERS_MAX + 1, "of so many sessions that are real, one has to give way"


def test_keys_that_are_none_are_a_mistake() -> None:
    for use, secrets in ((2, {1: SECRETS[1]}), (0, {0: SECRETS[1]}), (256, {256: SECRETS[1]}), (1, {1: b"short"})):
        with pytest.raises(AssertionError):
            Keys(use=use, secrets=secrets)


@pytest.mark.parametrize("rows_max", [1, 64])
@pytest.mark.req("GC-SEC-1", "GC-FEC-3")
def test_repair_symbols_are_sealed_and_what_cannot_be_opened_is_rebuilt(rows_max: int) -> None:
    """Lost, damaged and forged datagrams are erasures alike."""
    sender, egress = sealing(repair_share=10_000), sealed_egress()
    startup, body = started(sender), bytes(i % 249 for i in range(200_000))
    datagrams = sent(sender, body)
    assert all(unseal(d) is not None for d in datagrams)
    for place in range(1, len(datagrams), 7):
        datagrams[place] = datagrams[place][:60] + bytes([datagrams[place][60] ^ 1]) + datagrams[place][61:]
    for place in range(2, len(datagrams), 7):
        datagrams[place] = seal(unsealed(datagrams[place]), OTHER_SECRET)
    del datagrams[::7]
    egress.hear(startup)
    for each in bursts(datagrams, rows_max):
        egress.receiver.receive(each, 0.0)
    assert bodies(egress.receiver.take_events()) == [body]
    assert egress.receiver.counters.symbols_rebuilt > 30
    assert egress.dropped[DropReason.BAD_CHECK] > 40


# -- rows ----------------------------------------------------------------------------------------------------------


def test_room_for_clear_text_grows_and_is_used_again() -> None:
    """Many lengths in one sealer and one opener, the long ones behind the short ones, and short ones again."""
    sealer, opener = Sealer(link_id=LINK_ID, epoch=EPOCH, keys=KEYS), Opener(link_id=LINK_ID, keys=KEYS)
    sequence = 0
    for length in [*range(65, 110), 1_400, 9_000, 66, 65, 1_400]:
        count = min(6, 65_536 // (length + 64))
        slab = Slab()
        rows = slab.layout(length + 64, count, trailer_bytes=16)
        clear = np.frombuffer(np.random.default_rng(length).bytes(count * length), np.uint8).reshape(count, length)
        for i in range(count):
            header = Header(type=2, link_id=LINK_ID, epoch=EPOCH, sequence=sequence + i, flags=1, key_id=1)
            rows.header_bytes[i] = np.frombuffer(header.pack(), np.uint8)
        rows.payloads[:count] = clear
        sealer.protect(rows, count)
        assert [unseal(bytes(row)) for row in rows.matrix[:count]] == [bytes(row) for row in clear]
        opened, reasons = opener.verify(rows, count)
        assert reasons is None
        assert (opened[:count] == clear).all()
        sequence += count


@pytest.mark.parametrize("offset", [1, 13])
@pytest.mark.req("GC-MOD-1")
def test_bursts_are_what_they_hold(offset: int) -> None:
    """With several sessions, keys and lies in one burst: the same as if each datagram came alone."""
    own, other = Session(), Session(epoch=EPOCH + 1)
    lies = Session()
    made = [seal(own.startup()), *map(seal, own.message(bytes(300))), seal(lies.heartbeat(), OTHER_SECRET)]
    made += [
        *(seal(d, SECRETS[2], 2) for d in own.message(bytes(300))),
        seal(other.startup()),
        seal(lies.shutdown(), b"z" * 32, 5),
    ]
    made += [
        seal(with_header(own.heartbeat(), link_id=9)),
        own.heartbeat() + bytes(8),
        *map(seal, own.message(b"a" * 9)),
    ]
    assert {len(d) for d in made} == {128}
    alone, joined = sealed_egress(), sealed_egress()
    expected = alone.hear(made)
    joined.receiver.receive(burst(*made, offset=offset), 0.0)
    assert list(map(plain, joined.receiver.take_events())) == list(map(plain, expected))
    assert state_of(joined) == state_of(alone)
    assert joined.dropped == alone.dropped
    assert len(bodies(expected)) == 3
