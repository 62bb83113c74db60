"""The test vectors in `spec/vectors/`: their shape, and how they are read and written.

They are for other implementations, dissectors and decoders as much as for the tests here.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tests.spec.requirements import SPEC

VECTORS = SPEC / "vectors"


class Receiver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The egress that the frames are shown to."""

    link_id: int
    message_bytes_max: int
    reassembly_bytes_max: int


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A datagram that a receiver which has heard nothing takes in, field by field."""

    name: str
    hex: str
    header: dict[str, int]
    announcement: dict[str, int] | None
    """None for Data."""
    payload_hex: str
    check_hex: str


class DroppedFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A datagram that is dropped."""

    name: str
    reason: str
    """Name in registry.toml."""
    hex: str
    before: list[str]
    """What the receiver has heard before: hex, in order."""


class Frames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """frames.json."""

    receiver: Receiver
    accepted: list[Frame]
    dropped: list[DroppedFrame]


class SealedFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sealed datagram, step by step."""

    name: str
    payload_hex: str
    """In the clear."""
    associated_data_hex: str
    """The header."""
    salt_hex: str
    info_hex: str
    session_key_hex: str
    """HKDF-SHA-256 of the secret that the key id names, with this salt and info."""
    nonce_hex: str
    ciphertext_hex: str
    tag_hex: str
    hex: str
    """The datagram: associated data, ciphertext, tag."""


class Security(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """security.json: of link 7."""

    secrets: dict[str, str]
    """By key id, in hex."""
    sealed: list[SealedFrame]
    """Each is taken in by a receiver that has heard nothing."""
    dropped: list[DroppedFrame]


class WholeMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message and what is in it."""

    name: str
    hex: str
    kind: str
    """Name in registry.toml."""
    first_record: int
    record_count: int
    positions: list[tuple[str, int, int, int, int, int, int, bool | int, int]]
    """Runs; none in a repair."""
    spans: list[tuple[str, int, int, int, int, str, bool]]
    """Of a repair."""
    body_hex: str
    """As it crosses."""
    compression: str
    """Name in registry.toml."""
    plain_hex: str
    """The body when inflated."""


class DamagedMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that arrives whole and is reported as lost (`damaged`)."""

    name: str
    hex: str


class Messages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """messages.json."""

    whole: list[WholeMessage]
    damaged: list[DamagedMessage]


class CutOfMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a message of some length is cut."""

    message_bytes: int
    symbol_bytes_max: int
    symbol_bytes: int
    symbols: int


class Cuts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """cuts.json."""

    cuts: list[CutOfMessage]


class Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The symbols of a message, and losses that can be made good."""

    name: str
    blocks: int
    repair_symbols: int
    """Of each block."""
    source_hex: list[str]
    repair_hex: list[str]
    """In the order of their numbers."""
    lost: list[int]
    """Numbers of symbols, source and repair, without which the source symbols are rebuilt."""


class Codes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """fec.json."""

    codes: list[Code]


FILES: dict[str, type[Frames | Messages | Cuts | Codes | Security]] = {
    "frames": Frames,
    "messages": Messages,
    "cuts": Cuts,
    "fec": Codes,
    "security": Security,
}
"""What is in each `NAME.json`; `NAME.schema.json` says the same as a JSON schema."""

T = TypeVar("T", Frames, Messages, Cuts, Codes, Security)


def read(kind: type[T], name: str) -> T:
    """The vectors `name`.

    Raises:
        msgspec.ValidationError: the file is not as its schema says.
    """
    return msgspec.json.decode((VECTORS / f"{name}.json").read_bytes(), type=kind)


def as_json(content: object) -> str:
    """A vector file or a schema, to be read by people too."""
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n"
