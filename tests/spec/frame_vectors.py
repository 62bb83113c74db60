"""What is in `frames.json`: datagrams made field by field, those that are taken in and those that are dropped."""

from __future__ import annotations

import re

import attrs

from gapconn.protocol.envelope import Run
from gapconn.protocol.registry import DatagramType, DropReason, Flag, Phase
from gapconn.protocol.wire import SEQUENCE_LIMIT, Announcement, Header, encode_datagram
from tests.protocol.frames import LINK_ID, Session, message_of, with_header, with_payload
from tests.spec.requirements import SPEC
from tests.spec.vectors import DroppedFrame, Frame, Frames, Receiver

MESSAGE_BYTES_MAX = 65_536
REASSEMBLY_BYTES_MAX = 1 << 20
TOP = SEQUENCE_LIMIT - 1
TOP_8, TOP_16, TOP_32, TOP_64 = 2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1

SYMBOL_FIELDS = ("symbol_bytes", "blocks", "repair_symbols", "message", "message_bytes", "symbol")
"""Zero in all but Data."""


def frames() -> Frames:
    """frames.json."""
    accepted = {**_announcements(), **_data()}
    malformed = {**_bad_data(), **_bad_announcements()}
    dropped = [
        *((name, reason, datagram, []) for name, (reason, datagram) in _dropped_at_once().items()),
        *((name, DropReason.MALFORMED, datagram, []) for name, datagram in malformed.items()),
        *_dropped_after_others(),
    ]
    return Frames(
        receiver=Receiver(LINK_ID, MESSAGE_BYTES_MAX, REASSEMBLY_BYTES_MAX),
        accepted=[_frame(name, datagram) for name, datagram in accepted.items()],
        dropped=[
            DroppedFrame(name, reason.name.lower(), datagram.hex(), [earlier.hex() for earlier in before])
            for name, reason, datagram, before in dropped
        ],
    )


def encode(frame: Frame) -> bytes:
    """The datagram of a vector, from its fields."""
    payload = Announcement(**frame.announcement).pack() if frame.announcement else bytes.fromhex(frame.payload_hex)
    return encode_datagram(Header(**frame.header), payload)


def example() -> bytes:
    """The heartbeat of the example in wire.md."""
    return Session(link_id=7, epoch=0x0000018F00000001, sequence=5, messages=2, records=30).heartbeat()


def printed_example() -> bytes:
    """The bytes that wire.md prints, which are all but the check."""
    lines = (SPEC / "wire.md").read_text().split("## Example")[1].split("```")[1].splitlines()
    return bytes.fromhex("".join(re.sub(r"    .*", "", line) for line in lines))


def _frame(name: str, datagram: bytes) -> Frame:
    header, payload = Header.unpack(datagram), datagram[48:-8]
    said = None if header.type == DatagramType.DATA else attrs.asdict(Announcement.unpack(payload))
    return Frame(name, datagram.hex(), attrs.asdict(header), said, payload.hex(), datagram[-8:].hex())


def _announcements() -> dict[str, bytes]:
    last = Session(epoch=TOP_64, previous_epoch=TOP_64 - 1, sequence=TOP)
    return {
        "heartbeat: the example in wire.md": example(),
        "startup: the first of a link": Session(epoch=10).startup(),
        "startup: announcing": Session(epoch=10, sequence=3).startup(phase=Phase.ANNOUNCING),
        "startup: a successor": Session(epoch=11, previous_epoch=10).startup(),
        "startup: with FEC": Session(epoch=10).startup(fec_source_symbols=40, fec_repair_symbols=8),
        "heartbeat: paused": Session(epoch=10, sequence=3).heartbeat(phase=Phase.PAUSED),
        "heartbeat: shortest interval and timeout": Session(epoch=10, sequence=3).heartbeat(
            heartbeat_interval_ms=1, interruption_timeout_ms=1
        ),
        "heartbeat: with records filtered": Session(epoch=10, sequence=90, messages=80, records=999).heartbeat(
            records_filtered=17
        ),
        "heartbeat: largest numbers": last.heartbeat(
            messages_sent=TOP,
            records_sent=TOP_64,
            records_filtered=TOP_64,
            heartbeat_interval_ms=TOP_32,
            interruption_timeout_ms=TOP_32,
            message_bytes_max=TOP_32,
            mtu_bytes=TOP_16,
            symbol_bytes_max=TOP_16,
            security_mode=TOP_8,
            fec_source_symbols=TOP_8,
            fec_repair_symbols=TOP_8,
        ),
        "shutdown": Session(epoch=10, sequence=12, messages=9, records=9).shutdown(),
    }


def _data() -> dict[str, bytes]:
    repaired = Session(epoch=20, symbol_bytes=40, block_symbols=2, repair_symbols=1).message(bytes(range(160)))
    five = Session(epoch=20, symbol_bytes=40, block_symbols=2, sequence=7).message(bytes(range(160)))
    return {
        "data: a message of one symbol": Session(epoch=20, symbol_bytes=200).message(b"one")[0],
        "data: the shortest message": Session(epoch=20).symbols(message_of(b"", record_count=0))[0],
        **{f"data: symbol {i} of {len(five)}, in blocks of 2": datagram for i, datagram in enumerate(five)},
        "data: a source symbol of a message with repair symbols": with_header(five[0], repair_symbols=253),
        **{f"data: repair symbol {i - 5} of 3 blocks": repaired[i] for i in (5, 7)},
        "data: as many blocks as symbols": with_header(five[0], blocks=len(five)),
        "data: a message of positions": Session(epoch=20, symbol_bytes=200).positions(Run("a", 0, 41, 41, 41, 0))[0],
        "data: largest epoch, sequence and message": with_header(five[0], epoch=TOP_64, sequence=TOP, message=TOP),
    }


def _dropped_at_once() -> dict[str, tuple[DropReason, bytes]]:
    """Reasons that the first datagram of all can be dropped for."""
    beat = Session(epoch=10).heartbeat()
    data = Session(epoch=20, symbol_bytes=40).message(bytes(9))[0]
    why = DropReason
    return {
        "empty": (why.TOO_SHORT, b""),
        "one byte": (why.TOO_SHORT, beat[:1]),
        "a header and no check": (why.TOO_SHORT, beat[:48]),
        "one byte less than a header and a check": (why.TOO_SHORT, beat[:55]),
        "zeros": (why.BAD_MAGIC, bytes(120)),
        "another magic": (why.BAD_MAGIC, with_header(beat, magic=0x4744)),
        "another magic and version, and no check that fits": (why.BAD_MAGIC, b"\0\0\2" + beat[3:]),
        "version 2": (why.UNSUPPORTED_VERSION, with_header(beat, version=2)),
        "version 0, and no check that fits": (why.UNSUPPORTED_VERSION, beat[:2] + b"\0" + beat[3:]),
        "sealed": (why.WRONG_SECURITY_MODE, with_header(beat, flags=Flag.SEALED)),
        "sealed, with a tag in place of the check": (
            why.WRONG_SECURITY_MODE,
            with_header(data, flags=Flag.SEALED, key_id=1)[:-8] + bytes(range(16)),
        ),
        "a flipped bit in the check": (why.BAD_CHECK, _flipped(beat, len(beat) - 1)),
        "a flipped bit in the payload": (why.BAD_CHECK, _flipped(data, 60)),
        "a flipped bit in the link id": (why.BAD_CHECK, _flipped(beat, 11)),
        "a flipped bit in the type": (why.BAD_CHECK, _flipped(beat, 3)),
        "the last byte missing": (why.BAD_CHECK, beat[:-1]),
        "a byte too many": (why.BAD_CHECK, beat + b"\0"),
        "another link": (why.FOREIGN_LINK, with_header(beat, link_id=8)),
        "link 0": (why.FOREIGN_LINK, with_header(data, link_id=0)),
        "another link and an unknown type": (why.FOREIGN_LINK, with_header(beat, link_id=8, type=9)),
        "type 0": (why.UNKNOWN_TYPE, with_header(beat, type=0)),
        "type 5": (why.UNKNOWN_TYPE, with_header(data, type=5)),
        "an undefined flag": (why.UNKNOWN_TYPE, with_header(beat, flags=0x8000)),
        "a second undefined flag": (why.UNKNOWN_TYPE, with_header(data, flags=2)),
        "an unknown type and fields that contradict each other": (
            why.UNKNOWN_TYPE,
            with_header(data, type=5, symbol=9),
        ),
        "a message longer than the receiver's limit": (
            why.OVER_LIMIT,
            with_header(data, message_bytes=MESSAGE_BYTES_MAX + 1, blocks=7),
        ),
    }


def _flipped(datagram: bytes, offset: int) -> bytes:
    return datagram[:offset] + bytes([datagram[offset] ^ 1]) + datagram[offset + 1 :]


def _bad_data() -> dict[str, bytes]:
    """A datagram for each condition of GC-WIRE-7."""
    data = Session(epoch=20, symbol_bytes=40, sequence=5).message(bytes(9))[0]
    alone = with_header(data, blocks=1)
    return {
        "data: epoch 0": with_header(data, epoch=0),
        "data: sequence 2^63": with_header(data, sequence=TOP + 1),
        "data: largest sequence that fits the field": with_header(data, sequence=TOP_64),
        "data: an empty symbol": with_payload(with_header(data, symbol_bytes=0), b""),
        "data: a symbol length below the payload's": with_header(alone, symbol_bytes=39),
        "data: a symbol length above the payload's": with_header(alone, symbol_bytes=41),
        "data: cut short, with a check that fits": with_payload(data, data[48:-9]),
        "data: a byte too many, with a check that fits": with_payload(data, data[48:-8] + b"\0"),
        "data: a message of 32 bytes": with_header(alone, message_bytes=32),
        "data: a message of no bytes": with_header(alone, message_bytes=0),
        "data: no blocks": with_header(data, blocks=0, repair_symbols=2),
        "data: more blocks than source symbols": with_header(data, blocks=3),
        "data: most blocks that fit the field": with_header(data, blocks=TOP_16),
        "data: a block of 256 symbols": with_header(data, repair_symbols=254),
        "data: a block of 256 source symbols": with_header(data, message_bytes=256 * 40),
        "data: a symbol behind the source symbols": with_header(data, symbol=2),
        "data: a symbol behind the repair symbols": with_header(data, symbol=4, repair_symbols=2),
        "data: largest symbol": with_header(data, symbol=TOP_32),
        "data: a message above the sequence": with_header(data, message=6),
        "data: a key id without a seal": with_header(data, key_id=1),
    }


def _bad_announcements() -> dict[str, bytes]:
    """A datagram for each condition of GC-WIRE-9."""
    beat = Session(epoch=10, sequence=5, messages=2).heartbeat()
    said = Announcement.unpack(beat[48:-8])

    def saying(**changes: int) -> bytes:
        return with_payload(beat, attrs.evolve(said, **changes).pack())

    return {
        "heartbeat: epoch 0": with_header(beat, epoch=0),
        "heartbeat: sequence 2^63": with_header(beat, sequence=TOP + 1),
        "heartbeat: no payload": with_payload(beat, b""),
        "heartbeat: cut short, with a check that fits": with_payload(beat, beat[48:-9]),
        "heartbeat: a byte too many, with a check that fits": with_payload(beat, beat[48:-8] + b"\0"),
        **{f"heartbeat: {name} is not zero": with_header(beat, **{name: 1}) for name in SYMBOL_FIELDS},
        "heartbeat: a key id without a seal": with_header(beat, key_id=1),
        "startup: a key id without a seal": with_header(beat, type=DatagramType.STARTUP, key_id=255),
        "shutdown: a field of data": with_header(beat, type=DatagramType.SHUTDOWN, message=1),
        "heartbeat: more messages than datagrams": saying(messages_sent=6),
        "heartbeat: a previous epoch that is not before": saying(previous_epoch=10),
        "heartbeat: interval 0": saying(heartbeat_interval_ms=0),
        "heartbeat: an interruption timeout below the interval": saying(interruption_timeout_ms=999),
        "heartbeat: phase 0": saying(phase=0),
        "heartbeat: phase 5": saying(phase=5),
        "heartbeat: a reserved field of the announcement": saying(reserved=1),
    }


def _dropped_after_others() -> list[tuple[str, DropReason, bytes, list[bytes]]]:
    """Reasons that depend on what was heard before."""
    why = DropReason
    repaired = Session(epoch=20, symbol_bytes=40, repair_symbols=2).message(bytes(9))
    session = Session(epoch=20, symbol_bytes=40)
    startup = session.startup()
    first, second = session.message(bytes(9))
    copy = with_header(first, sequence=9)
    over_limit = with_header(first, sequence=9, message=1, message_bytes=MESSAGE_BYTES_MAX + 1, blocks=7)
    other = Session(epoch=30, previous_epoch=10)
    successor = Session(epoch=21, previous_epoch=20).startup()
    longer = with_header(second, message_bytes=79)
    shorter = with_payload(with_header(second, symbol_bytes=39), bytes(39))
    far = Session(epoch=20, sequence=300_000).heartbeat()
    jump = Session(epoch=20, sequence=2_000_000).heartbeat()
    return [
        ("an older session", why.STALE_SESSION, Session(epoch=19).heartbeat(), [startup]),
        ("a session that lost the link", why.STALE_SESSION, first, [startup, successor]),
        ("a second ingress", why.CONFLICT, other.startup(), [startup]),
        ("data of a second ingress", why.CONFLICT, other.message(b"x")[0], [startup]),
        ("a jump that nothing confirms", why.UNCONFIRMED_JUMP, jump, [startup, first]),
        ("a jump that only its copy confirms", why.UNCONFIRMED_JUMP, jump, [startup, jump]),
        ("behind the window", why.TOO_LATE, first, [startup, far]),
        ("a startup twice", why.DUPLICATE, startup, [startup]),
        ("a symbol twice", why.DUPLICATE, first, [startup, first]),
        ("a symbol twice, its message delivered", why.DUPLICATE, first, [startup, first, second]),
        ("an over-long message, at a sequence received before", why.DUPLICATE, over_limit, [startup, copy]),
        ("an over-long message, after another was delivered", why.OVER_LIMIT, over_limit, [startup, first, second]),
        ("another length of a message", why.INCONSISTENT_MESSAGE, longer, [startup, first]),
        ("other blocks of a message", why.INCONSISTENT_MESSAGE, with_header(second, blocks=2), [startup, first]),
        ("another cut of a message", why.INCONSISTENT_MESSAGE, shorter, [startup, first]),
        ("a symbol again, at another sequence", why.NOT_NEEDED, copy, [startup, first]),
        (
            "other repair symbols of a message",
            why.INCONSISTENT_MESSAGE,
            with_header(repaired[1], sequence=9),
            [startup, first],
        ),
        ("a repair symbol of a delivered message", why.NOT_NEEDED, repaired[2], repaired[:2]),
        ("a source symbol of a message that was rebuilt", why.NOT_NEEDED, repaired[1], [repaired[0], repaired[2]]),
        ("a symbol of a delivered message", why.NOT_NEEDED, copy, [startup, first, second]),
        (
            "a symbol of a message from before the egress joined",
            why.NOT_NEEDED,
            first,
            [Session(epoch=20, sequence=9, messages=4, records=4).heartbeat()],
        ),
    ]
