"""What is in `security.json`: sealed datagrams step by step, and those that a sealed link drops."""

from __future__ import annotations

import attrs

from gapconn.protocol.registry import DropReason
from gapconn.protocol.wire import Header
from tests.protocol.frames import Session, with_header
from tests.protocol.sealing import OTHER_SECRET, SECRETS, hkdf, info_of, seal
from tests.spec.vectors import DroppedFrame, SealedFrame, Security

LAST_EPOCH = 2**64 - 1


def security() -> Security:
    """security.json."""
    return Security(
        secrets={str(key_id): secret.hex() for key_id, secret in SECRETS.items()},
        sealed=[_frame(name, datagram, key_id) for name, (datagram, key_id) in _sealed().items()],
        dropped=[
            DroppedFrame(name, reason.name.lower(), datagram.hex(), [earlier.hex() for earlier in before])
            for name, reason, datagram, before in _dropped()
        ],
    )


def _frame(name: str, plain: bytes, key_id: int) -> SealedFrame:
    datagram = seal(plain, SECRETS[key_id], key_id)
    header = datagram[:48]
    return SealedFrame(
        name=name,
        payload_hex=plain[48:-8].hex(),
        associated_data_hex=header.hex(),
        salt_hex=header[16:28].hex(),
        info_hex=info_of(header).hex(),
        session_key_hex=hkdf(SECRETS[key_id], header[16:28], info_of(header)).hex(),
        nonce_hex=header[20:32].hex(),
        ciphertext_hex=datagram[48:-16].hex(),
        tag_hex=datagram[-16:].hex(),
        hex=datagram.hex(),
    )


def _sealed() -> dict[str, tuple[bytes, int]]:
    beat = Session(epoch=0x0000018F00000001, sequence=5, messages=2, records=30).heartbeat(security_mode=1)
    data = Session(epoch=20, symbol_bytes=200).message(b"one")[0]
    return {
        "heartbeat: the example in wire.md, sealed": (beat, 1),
        "heartbeat: with another key": (beat, 2),
        "startup: highest key id": (Session(epoch=10).startup(security_mode=1), 255),
        "shutdown": (Session(epoch=10, sequence=12, messages=9, records=9).shutdown(security_mode=1), 1),
        "data: a message of one symbol": (data, 1),
        "data: the last of its session key": (with_header(data, sequence=2**32 - 1), 1),
        "data: the first of the next session key": (with_header(data, sequence=2**32), 1),
        "data: largest epoch and sequence": (with_header(data, epoch=LAST_EPOCH, sequence=2**63 - 1), 2),
    }


def _dropped() -> list[tuple[str, DropReason, bytes, list[bytes]]]:
    why = DropReason
    session = Session(epoch=10)
    startup, beat = session.startup(), session.heartbeat()
    good = seal(beat)
    header = Header.unpack(good)

    def resealed(**changes: int) -> bytes:
        """Sealed well, but saying something else."""
        return seal(with_header(beat, **changes))

    return [
        ("63 bytes", why.TOO_SHORT, good[:63], []),
        ("another magic", why.BAD_MAGIC, resealed(magic=0x4744), []),
        ("version 2", why.UNSUPPORTED_VERSION, resealed(version=2), []),
        ("another link", why.FOREIGN_LINK, resealed(link_id=8), []),
        ("another link, not sealed", why.FOREIGN_LINK, with_header(beat, link_id=8), []),
        ("not sealed", why.WRONG_SECURITY_MODE, beat, []),
        ("not sealed, with a key id", why.WRONG_SECURITY_MODE, with_header(beat, key_id=1), []),
        ("key 3", why.UNKNOWN_KEY, seal(beat, OTHER_SECRET, 3), []),
        ("key 0", why.UNKNOWN_KEY, seal(beat, SECRETS[1], 0), []),
        ("another secret", why.BAD_CHECK, seal(beat, OTHER_SECRET), []),
        ("the secret of another key", why.BAD_CHECK, seal(beat, SECRETS[2], 1), []),
        ("a check in place of the tag", why.BAD_CHECK, with_header(beat, flags=1, key_id=1) + bytes(8), []),
        ("a flipped bit in the tag", why.BAD_CHECK, _flipped(good, -1), []),
        ("a flipped bit in the payload", why.BAD_CHECK, _flipped(good, 60), []),
        ("a flipped bit in the type", why.BAD_CHECK, _flipped(good, 3), []),
        ("a flipped bit in the epoch", why.BAD_CHECK, _flipped(good, 23), []),
        ("a flipped bit in the sequence", why.BAD_CHECK, _flipped(good, 31), []),
        ("the tag of another datagram", why.BAD_CHECK, good[:-16] + seal(startup)[-16:], []),
        ("the header of another datagram", why.BAD_CHECK, seal(startup)[:48] + good[48:], []),
        ("the last byte missing", why.BAD_CHECK, good[:-1], []),
        ("a byte too many", why.BAD_CHECK, good + b"\0", []),
        ("type 5", why.UNKNOWN_TYPE, resealed(type=5), []),
        ("another flag", why.UNKNOWN_TYPE, resealed(flags=2), []),
        ("malformed", why.MALFORMED, resealed(symbol=1), []),
        ("epoch 0", why.MALFORMED, resealed(epoch=0), []),
        ("a replay", why.DUPLICATE, good, [seal(startup), good]),
        ("a replay under another key", why.DUPLICATE, seal(beat, SECRETS[2], 2), [seal(startup), good]),
        ("a replay of an older session", why.STALE_SESSION, good, [seal(Session(epoch=11).startup())]),
        (
            "a forged successor",
            why.BAD_CHECK,
            attrs.evolve(header, epoch=11, sequence=0).pack() + seal(startup)[48:],
            [seal(startup)],
        ),
    ]


def _flipped(datagram: bytes, place: int) -> bytes:
    flipped = bytearray(datagram)
    flipped[place] ^= 1
    return bytes(flipped)
