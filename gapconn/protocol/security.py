"""Sealed datagrams: session keys and authenticated encryption (spec/security.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET_BYTES: Final = 32
KEY_ID_MAX: Final = 255


@attrs.frozen(kw_only=True)
class Keys:
    """The secrets of a link by key id, 1 to 255, and which of them a sender seals with."""

    use: int
    secrets: Mapping[int, bytes] = attrs.field(repr=lambda secrets: f"<{len(secrets)} secrets>")

    def __attrs_post_init__(self) -> None:
        assert self.use in self.secrets
        assert all(1 <= i <= KEY_ID_MAX and len(secret) == SECRET_BYTES for i, secret in self.secrets.items())


def session_key(secret: bytes, *, epoch: int, generation: int, link_id: int, key_id: int) -> bytes:
    """The key that seals the datagrams of one session whose sequence has `generation` as its upper half (GC-SEC-2)."""
    info = b"gapconn 1 " + link_id.to_bytes(4, "big") + key_id.to_bytes(1, "big")
    salt = epoch.to_bytes(8, "big") + generation.to_bytes(4, "big")
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)
