"""Sealed datagrams as spec/security.md says, written down a second time: HKDF by hand, one datagram at a time."""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from xxhash import xxh3_64_digest

SEALED = 1
SECRETS = {1: bytes(range(32)), 2: bytes(range(100, 132)), 255: b"\xff" * 32}
"""Secrets of the tests' link."""
OTHER_SECRET = bytes(range(32, 64))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 of 32 bytes (RFC 5869)."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def info_of(header: bytes) -> bytes:
    return b"gapconn 1 " + header[8:12] + header[15:16]


@functools.lru_cache(maxsize=1_000)
def _cipher(secret: bytes, salt: bytes, info: bytes) -> AESGCM:
    return AESGCM(hkdf(secret, salt, info))


def cipher(header: bytes, secret: bytes) -> AESGCM:
    """AES-256-GCM with the session key (GC-SEC-2)."""
    return _cipher(secret, header[16:28], info_of(header))


def seal(datagram: bytes, secret: bytes = SECRETS[1], key_id: int = 1) -> bytes:
    """A datagram with a check as a sealed one (GC-SEC-1)."""
    header = bytearray(datagram[:48])
    header[5] |= SEALED
    header[15] = key_id
    return seal_payload(bytes(header), datagram[48:-8], secret)


def seal_payload(header: bytes, payload: bytes, secret: bytes) -> bytes:
    """The datagram with this header, whatever it says, and this payload."""
    return header + cipher(header, secret).encrypt(header[20:32], payload, header)


def unseal(datagram: bytes, secrets: Mapping[int, bytes] = SECRETS) -> bytes | None:
    """The clear payload of a sealed datagram; None if no secret opens it."""
    header = datagram[:48]
    secret = secrets.get(header[15])
    if secret is None:
        return None
    try:
        return cipher(header, secret).decrypt(header[20:32], datagram[48:], header)
    except InvalidTag:
        return None


def unsealed(datagram: bytes, secrets: Mapping[int, bytes] = SECRETS) -> bytes:
    """A sealed datagram as one with a check, as if it had never been sealed."""
    payload = unseal(datagram, secrets)
    assert payload is not None
    header = bytearray(datagram[:48])
    header[5] &= ~SEALED
    header[15] = 0
    covered = bytes(header) + payload
    return covered + xxh3_64_digest(covered)
