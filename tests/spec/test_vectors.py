"""Every vector of the specification, through the codec both ways and through a receiver."""

from __future__ import annotations

from pathlib import Path

import attrs
import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from xxhash import xxh3_64_digest

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.compression import inflate
from gapconn.protocol.envelope import open_message
from gapconn.protocol.fragmenter import cut_of
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import DatagramType, DropReason
from gapconn.protocol.security import Keys, Opener, Sealer, session_key
from gapconn.protocol.wire import Announcement, Header, encode_datagram
from tests.protocol.frames import burst, message_of
from tests.spec.__main__ import vector_files
from tests.spec.frame_vectors import encode, example, printed_example
from tests.spec.vectors import Cuts, DroppedFrame, Frame, Frames, Messages, SealedFrame, Security, WholeMessage, read

FRAMES = read(Frames, "frames")
MESSAGES = read(Messages, "messages")
SECURITY = read(Security, "security")
VECTOR_FILES = list(vector_files())

each_accepted = pytest.mark.parametrize("frame", FRAMES.accepted, ids=[frame.name for frame in FRAMES.accepted])
each_dropped = pytest.mark.parametrize("frame", FRAMES.dropped, ids=[frame.name for frame in FRAMES.dropped])
each_sealed = pytest.mark.parametrize("vector", SECURITY.sealed, ids=[vector.name for vector in SECURITY.sealed])
each_message = pytest.mark.parametrize("vector", MESSAGES.whole, ids=[vector.name for vector in MESSAGES.whole])
each_damaged = pytest.mark.parametrize("vector", MESSAGES.damaged, ids=[vector.name for vector in MESSAGES.damaged])


@pytest.mark.parametrize(("path", "text"), VECTOR_FILES, ids=[path.name for path, _ in VECTOR_FILES])
def test_the_files_are_current(path: Path, text: str) -> None:
    assert path.read_text() == text, "run `python -m tests.spec`"


@pytest.mark.req("GC-WIRE-2")
def test_the_example_is_what_the_specification_prints() -> None:
    printed = printed_example()
    assert len(printed) == 112
    assert printed + xxh3_64_digest(printed) == example()
    assert example().hex() in {frame.hex for frame in FRAMES.accepted}


def test_every_type_and_every_drop_reason_has_a_frame() -> None:
    assert {frame.header["type"] for frame in FRAMES.accepted} == set(DatagramType)
    reasons = {frame.reason for frame in FRAMES.dropped} | {frame.reason for frame in SECURITY.dropped}
    assert reasons == {reason.name.lower() for reason in DropReason}
    names = [frame.name for frame in FRAMES.accepted] + [frame.name for frame in FRAMES.dropped]
    assert len(set(names)) == len(names)


@each_accepted
@pytest.mark.req("GC-WIRE-1", "GC-WIRE-2")
def test_an_accepted_frame_is_encoded_from_its_fields(frame: Frame) -> None:
    assert encode(frame).hex() == frame.hex


@each_accepted
def test_an_accepted_frame_is_decoded_to_its_fields(frame: Frame) -> None:
    datagram = bytes.fromhex(frame.hex)
    header = Header.unpack(datagram)
    assert attrs.asdict(header) == frame.header
    assert datagram[48:-8].hex() == frame.payload_hex
    assert xxh3_64_digest(datagram[:-8]).hex() == frame.check_hex
    assert header.well_formed(len(datagram) - 56)
    if frame.announcement is not None:
        said = Announcement.unpack(datagram[48:-8])
        assert attrs.asdict(said) == frame.announcement
        assert said.well_formed(header)


@each_accepted
def test_an_accepted_frame_is_accepted(frame: Frame) -> None:
    receiver = fresh_receiver()
    assert drops_of(receiver, bytes.fromhex(frame.hex)) == {}
    assert receiver.epoch == frame.header["epoch"]


@each_accepted
@pytest.mark.req("GC-WIRE-3", "GC-WIRE-7", "GC-WIRE-9")
def test_an_accepted_frame_cut_anywhere_is_dropped(frame: Frame) -> None:
    """Whether the check is the one that was cut off too, or one that fits what is left."""
    datagram = bytes.fromhex(frame.hex)
    receiver = fresh_receiver()
    for length in range(len(datagram)):
        reason = DropReason.TOO_SHORT if length < 56 else DropReason.BAD_CHECK
        assert drops_of(receiver, datagram[:length]) == {reason: 1}
    header = Header.unpack(datagram)
    for length in range(len(datagram) - 56):
        assert drops_of(receiver, encode_datagram(header, datagram[48 : 48 + length])) == {DropReason.MALFORMED: 1}
    assert receiver.epoch == 0


@each_accepted
@pytest.mark.req("GC-WIRE-3", "GC-WIRE-7", "GC-WIRE-9")
def test_an_accepted_frame_with_bytes_behind_it_is_dropped(frame: Frame) -> None:
    datagram = bytes.fromhex(frame.hex)
    receiver = fresh_receiver()
    for more in (b"\0", b"\xff", bytes(8), datagram):
        assert drops_of(receiver, datagram + more) == {DropReason.BAD_CHECK: 1}
        longer = encode_datagram(Header.unpack(datagram), datagram[48:-8] + more)
        assert drops_of(receiver, longer) == {DropReason.MALFORMED: 1}


@each_accepted
@pytest.mark.req("GC-WIRE-2", "GC-WIRE-3")
def test_an_accepted_frame_with_any_byte_changed_is_dropped(frame: Frame) -> None:
    datagram = bytes.fromhex(frame.hex)
    receiver = fresh_receiver()
    for offset in range(len(datagram)):
        changed = datagram[:offset] + bytes([datagram[offset] ^ 0x40]) + datagram[offset + 1 :]
        reason = {0: DropReason.BAD_MAGIC, 1: DropReason.BAD_MAGIC, 2: DropReason.UNSUPPORTED_VERSION}
        assert drops_of(receiver, changed) == {reason.get(offset, DropReason.BAD_CHECK): 1}


@each_dropped
@pytest.mark.req("GC-MOD-5", "GC-WIRE-3", "GC-WIRE-4", "GC-WIRE-7", "GC-WIRE-9", "GC-SESS-12", "GC-SEC-5")
def test_a_frame_is_dropped_for_its_reason(frame: DroppedFrame) -> None:
    receiver = fresh_receiver()
    for earlier in frame.before:
        receiver.receive(burst(bytes.fromhex(earlier)), 0.0)
    assert drops_of(receiver, bytes.fromhex(frame.hex)) == {DropReason[frame.reason.upper()]: 1}


@each_message
@pytest.mark.req("GC-WIRE-10", "GC-COMP-3")
def test_a_message_is_opened_to_its_fields(vector: WholeMessage) -> None:
    message = open_message(memoryview(bytes.fromhex(vector.hex)))
    assert (message.kind.name.lower(), message.first_record, message.record_count, message.body.hex()) == (
        vector.kind,
        vector.first_record,
        vector.record_count,
        vector.body_hex,
    )
    assert [msgspec.structs.astuple(run) for run in message.runs] == vector.positions
    assert message.compression.name.lower() == vector.compression
    plain = inflate(message.body, message.compression, message.plain_bytes, plain_bytes_max=1 << 20)
    assert plain.hex() == vector.plain_hex
    assert [msgspec.structs.astuple(span) for span in message.spans] == vector.spans
    assert vector.hex[-16:] == xxh3_64_digest(bytes.fromhex(vector.hex)[:-8]).hex()
    again = message_of(
        bytes(message.body),
        runs=message.runs or message.spans,
        first_record=message.first_record,
        record_count=message.record_count,
        kind=message.kind,
        compression=message.compression,
        plain_bytes=message.plain_bytes,
    )
    assert again.hex() == vector.hex


@each_damaged
@pytest.mark.req("GC-WIRE-11", "GC-COMP-2", "GC-RPR-3")
def test_a_damaged_message_is_not_opened(vector: WholeMessage) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_message(memoryview(bytes.fromhex(vector.hex)))
    assert caught.value.reason == "damaged"


@pytest.mark.req("GC-DLV-2")
def test_messages_are_cut_as_the_vectors_say() -> None:
    cuts = read(Cuts, "cuts").cuts
    assert len(cuts) > 100
    for vector in cuts:
        cut = cut_of(vector.message_bytes, vector.symbol_bytes_max)
        assert (cut.message_bytes, cut.symbol_bytes, cut.symbols) == (
            vector.message_bytes,
            vector.symbol_bytes,
            vector.symbols,
        )


@each_sealed
@pytest.mark.req("GC-SEC-1", "GC-SEC-2")
def test_each_step_to_a_sealed_frame_is_as_the_vector_says(vector: SealedFrame) -> None:
    header = bytes.fromhex(vector.associated_data_hex)
    secret = bytes.fromhex(SECURITY.secrets[str(header[15])])
    epoch, generation = int.from_bytes(header[16:24], "big"), int.from_bytes(header[24:28], "big")
    key = session_key(secret, link_id=7, key_id=header[15], epoch=epoch, generation=generation)
    assert (vector.salt_hex, vector.nonce_hex) == (header[16:28].hex(), header[20:32].hex())
    assert vector.info_hex == (b"gapconn 1 " + header[8:12] + header[15:16]).hex()
    assert key.hex() == vector.session_key_hex
    clear = bytes.fromhex(vector.payload_hex)
    sealed = AESGCM(key).encrypt(bytes.fromhex(vector.nonce_hex), clear, header)
    assert vector.hex == (header + sealed).hex() == header.hex() + vector.ciphertext_hex + vector.tag_hex
    assert len(vector.tag_hex) == 32


@each_sealed
@pytest.mark.req("GC-SEC-1", "GC-SEC-2", "GC-SEC-4")
def test_a_sealed_frame_is_what_a_sealer_makes_and_an_opener_opens(vector: SealedFrame) -> None:
    datagram, header = bytes.fromhex(vector.hex), Header.unpack(bytes.fromhex(vector.associated_data_hex))
    made = burst(datagram[:48] + bytes.fromhex(vector.payload_hex) + bytes(16))
    keys = Keys(use=header.key_id, secrets=secrets_of(SECURITY))
    rows = made.slab.layout(made.datagram_bytes, 1, trailer_bytes=16)
    Sealer(link_id=7, epoch=header.epoch, keys=keys).protect(rows, 1)
    assert bytes(made.bytes) == datagram
    opener = Opener(link_id=7, keys=keys)
    clear, reasons = opener.verify(rows, 1)
    assert (bytes(clear[0]).hex(), reasons) == (vector.payload_hex, None)
    payload, reason = opener.verify_one(memoryview(datagram))
    assert (bytes(payload).hex(), reason) == (vector.payload_hex, None)


@each_sealed
def test_a_sealed_frame_is_accepted(vector: SealedFrame) -> None:
    assert drops_of(sealed_receiver(), bytes.fromhex(vector.hex)) == {}


@pytest.mark.parametrize("frame", SECURITY.dropped, ids=[frame.name for frame in SECURITY.dropped])
@pytest.mark.req("GC-SEC-3", "GC-SEC-4", "GC-SEC-6")
def test_a_frame_that_a_sealed_link_drops(frame: DroppedFrame) -> None:
    receiver = sealed_receiver()
    for earlier in frame.before:
        receiver.receive(burst(bytes.fromhex(earlier)), 0.0)
    assert drops_of(receiver, bytes.fromhex(frame.hex)) == {DropReason[frame.reason.upper()]: 1}


def secrets_of(security: Security) -> dict[int, bytes]:
    return {int(key_id): bytes.fromhex(secret) for key_id, secret in security.secrets.items()}


def sealed_receiver() -> LinkReceiver:
    """The egress that the sealed frames are shown to."""
    secrets = secrets_of(SECURITY)
    return LinkReceiver(ReceiverSettings(link_id=7, keys=Keys(use=min(secrets), secrets=secrets)), now_s=0.0)


def fresh_receiver() -> LinkReceiver:
    """The egress that the frames are shown to."""
    says = FRAMES.receiver
    settings = ReceiverSettings(
        link_id=says.link_id,
        message_bytes_max=says.message_bytes_max,
        reassembly_bytes_max=says.reassembly_bytes_max,
    )
    return LinkReceiver(settings, now_s=0.0)


def drops_of(receiver: LinkReceiver, datagram: bytes) -> dict[DropReason, int]:
    """What the receiver drops of one datagram."""
    before = receiver.counters.dropped.copy()
    receiver.receive(burst(datagram), 0.0)
    return dict(receiver.counters.dropped - before)
