"""The numbers and names of `spec/registry.toml`, as code. A test holds the two against each other."""

from __future__ import annotations

from enum import IntEnum, IntFlag

VERSION = 1
MAGIC = 0x4743
HEADER_BYTES = 48
CHECK_BYTES = 8
TAG_BYTES = 16
ANNOUNCEMENT_BYTES = 64
ENVELOPE_BYTES = 24
MESSAGE_CHECK_BYTES = 8

DATAGRAM_BYTES_MAX = 65_507
SYMBOLS_PER_BLOCK_MAX = 255
MESSAGE_BYTES_MAX = 67_108_864
SEQUENCE_WINDOW = 262_144
JUMP_UNCONFIRMED_MAX = 1_048_576
MESSAGES_HELD_MAX = 65_536
POSITIONS_TRACKED_MAX = 100_000
LOST_RANGES_MAX = 4_096
STARTUP_COPIES = 3
SHUTDOWN_COPIES = 3


class DatagramType(IntEnum):
    """What a datagram is for."""

    STARTUP = 1
    DATA = 2
    HEARTBEAT = 3
    SHUTDOWN = 4


class Flag(IntFlag):
    """Bits of the flags field."""

    SEALED = 0x0001


class SecurityMode(IntEnum):
    """How datagrams are protected."""

    NONE = 0
    AES_256_GCM = 1


class Phase(IntEnum):
    """Where an ingress is in its session, as it announces it."""

    ANNOUNCING = 1
    ACTIVE = 2
    CLOSING = 3
    PAUSED = 4


class MessageKind(IntEnum):
    """What a message is."""

    BATCH = 1
    POSITIONS = 2
    REPAIR = 3
    COPY = 4


class Compression(IntEnum):
    """How the body of a message is compressed."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2


class DropReason(IntEnum):
    """Why a datagram was dropped; the first that applies, in this order, counts (on a sealed link: GC-SEC-3)."""

    TOO_SHORT = 1
    BAD_MAGIC = 2
    UNSUPPORTED_VERSION = 3
    WRONG_SECURITY_MODE = 4
    BAD_CHECK = 5
    FOREIGN_LINK = 6
    UNKNOWN_TYPE = 7
    MALFORMED = 8
    STALE_SESSION = 9
    CONFLICT = 10
    UNCONFIRMED_JUMP = 11
    TOO_LATE = 12
    DUPLICATE = 13
    OVER_LIMIT = 14
    INCONSISTENT_MESSAGE = 15
    NOT_NEEDED = 16
    UNKNOWN_KEY = 17


class LossCause(IntEnum):
    """Why a message, or the records in it, did not reach the sink."""

    GAP = 1
    DAMAGED = 2
    OVERFLOW = 3
    SESSION_ENDED = 4
    BEFORE_JOIN = 5
    WHILE_AWAY = 6
    REFUSED = 7
