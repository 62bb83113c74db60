"""Sealed datagrams: session keys and authenticated encryption (spec/security.md).

The header says all that is needed to open a datagram, in the places where it is needed: key id, epoch and the upper
half of the sequence, which name the session key, are one stretch of bytes, and the nonce is another. So neither side
computes anything for a datagram but its cipher.

Nothing is sealed or opened in place: the clear text is in a buffer of its own. A call for a buffer that is its own
source would depend on what the cipher library does then, and is no faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import attrs
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from gapconn.protocol.buffers import page_aligned
from gapconn.protocol.protection import VERIFIED
from gapconn.protocol.registry import (
    HEADER_BYTES,
    MAGIC,
    TAG_BYTES,
    VERSION,
    DropReason,
    Flag,
    SecurityMode,
)
from gapconn.protocol.wire import KEY_NAME_FIELD, NONCE_FIELD, Layout

SECRET_BYTES: Final = 32
KEY_ID_MAX: Final = 255
GENERATION_BITS: Final = 32
"""A session key is used for so many datagrams at the most, as a power of two."""
CIPHERS_MAX: Final = 8
"""Session keys that a receiver keeps. More sessions than two or three are not heard at a time."""
_LENGTHS_MAX: Final = 32
_MAGIC: Final = MAGIC.to_bytes(2, "big")


@attrs.frozen(kw_only=True)
class Keys:
    """The secrets of a link by key id, 1 to 255, and which of them a sender seals with."""

    use: int
    secrets: Mapping[int, bytes] = attrs.field(repr=lambda secrets: f"<{len(secrets)} secrets>")

    def __attrs_post_init__(self) -> None:
        assert self.use in self.secrets
        assert all(1 <= i <= KEY_ID_MAX and len(secret) == SECRET_BYTES for i, secret in self.secrets.items())


def session_key(secret: bytes, *, link_id: int, key_id: int, epoch: int, generation: int) -> bytes:
    """The key of the datagrams of one session whose sequence has `generation` as its upper half (GC-SEC-2)."""
    salt = epoch.to_bytes(8, "big") + generation.to_bytes(4, "big")
    info = b"gapconn 1 " + link_id.to_bytes(4, "big") + key_id.to_bytes(1, "big")
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


class _ClearText:
    """A buffer for payloads in the clear, with its views kept per length."""

    def __init__(self) -> None:
        self._flat = page_aligned(0)
        self._views: dict[int, tuple[NDArray[np.uint8], list[memoryview]]] = {}

    def of(self, rows: Layout) -> tuple[NDArray[np.uint8], list[memoryview]]:
        """Room for the payloads of these rows: as a matrix, and row by row."""
        length = rows.payloads.shape[1]
        found = self._views.get(length)
        if found is None or len(found[0]) < rows.rows:
            size = rows.rows * length
            if len(self._flat) < size or len(self._views) >= _LENGTHS_MAX:
                self._flat = page_aligned(max(size, len(self._flat)))
                self._views.clear()
            flat = self._flat[:size]
            views = [flat.data[i * length : (i + 1) * length] for i in range(rows.rows)]
            found = self._views[length] = (flat.reshape(rows.rows, length), views)
        return found


class Sealer:
    """The sending half: seals with the key in use, which may change between two datagrams (GC-SEC-4).

    Args:
        link_id: Of the link.
        epoch: Of the session.
        keys: The secrets.
    """

    mode = SecurityMode.AES_256_GCM
    trailer_bytes = TAG_BYTES
    flags = int(Flag.SEALED)

    def __init__(self, *, link_id: int, epoch: int, keys: Keys) -> None:
        self._link_id = link_id
        self._epoch = epoch
        self._clear = _ClearText()
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Seal with these keys from now on. The sequence goes on, so that no nonce is used twice with any of them."""
        self.key_id = keys.use
        self._secret = keys.secrets[keys.use]
        self._cipher: AESGCM | None = None
        self._generation = -1

    def protect(self, rows: Layout, count: int) -> None:
        """Seal the first `count` rows (GC-SEC-1)."""
        first = int(rows.sequences[0])
        generation = first >> GENERATION_BITS
        same = min(count, ((generation + 1) << GENERATION_BITS) - first)
        self._protect(rows, 0, same, generation)
        if same < count:
            self._protect(rows, same, count, generation + 1)

    def _protect(self, rows: Layout, first: int, stop: int, generation: int) -> None:
        if self._cipher is None or generation != self._generation:
            self._generation = generation
            key = session_key(
                self._secret, link_id=self._link_id, key_id=self.key_id, epoch=self._epoch, generation=generation
            )
            self._cipher = AESGCM(key)
        clear, views = self._clear.of(rows)
        clear[first:stop] = rows.payloads[first:stop]
        some = slice(first, stop)
        nonces = rows.views(NONCE_FIELD.start, NONCE_FIELD.stop)[some]
        headers = rows.views(0, HEADER_BYTES)[some]
        sealed = rows.views(HEADER_BYTES, rows.datagram_bytes)[some]
        deque(map(self._cipher.encrypt_into, nonces, views[some], headers, sealed), maxlen=0)


class Opener:
    """The receiving half: opens with every key that it has.

    Args:
        link_id: Of the link.
        keys: The secrets.
    """

    trailer_bytes = TAG_BYTES
    flags = int(Flag.SEALED)

    def __init__(self, *, link_id: int, keys: Keys) -> None:
        self._link_id = link_id
        self._link_bytes = link_id.to_bytes(4, "big")
        self._clear = _ClearText()
        self._secrets: Mapping[int, bytes] = {}
        self._ciphers: dict[bytes, AESGCM] = {}
        """Session keys by name. Only those that have opened something: forged names must not drive out a good one."""
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Open with these keys, and with no others, from now on."""
        if keys.secrets != self._secrets:
            self._secrets = dict(keys.secrets)
            self._ciphers.clear()

    def verify(self, rows: Layout, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Open the first `count` rows (GC-SEC-3)."""
        clear, views = self._clear.of(rows)
        fields = rows.session_fields[:count]
        if (fields == fields[0]).all():
            stops = [count]
        else:
            stops = [*(np.flatnonzero((fields[1:] != fields[:-1]).any(axis=1)) + 1).tolist(), count]
        reasons = None
        first = 0
        for stop in stops:
            refused = self._open(rows, views, first, stop)
            if refused is not None:
                if reasons is None:
                    reasons = np.full(count, VERIFIED, np.uint8)
                reasons[first:stop] = refused
            first = stop
        return clear, reasons

    def verify_one(self, datagram: memoryview) -> tuple[memoryview | bytes, DropReason | None]:
        """Open one datagram."""
        header, sealed = datagram[:HEADER_BYTES], datagram[HEADER_BYTES:]
        cipher = self._cipher_for(header)
        if isinstance(cipher, DropReason):
            return sealed, cipher
        try:
            clear = cipher.decrypt(header[NONCE_FIELD], sealed, header)
        except InvalidTag:
            return sealed, DropReason.BAD_CHECK
        self._keep(header, cipher)
        return clear, None

    def _open(self, rows: Layout, views: list[memoryview], first: int, stop: int) -> DropReason | list[int] | None:
        """Open rows that have the same session key; the reason to drop them, or one for each, or None."""
        headers = rows.views(0, HEADER_BYTES)
        cipher = self._cipher_for(headers[first])
        if isinstance(cipher, DropReason):
            return cipher
        some = slice(first, stop)
        arguments = (
            rows.views(NONCE_FIELD.start, NONCE_FIELD.stop)[some],
            rows.views(HEADER_BYTES, rows.datagram_bytes)[some],
            headers[some],
            views[some],
        )
        try:
            deque(map(cipher.decrypt_into, *arguments), maxlen=0)
        except InvalidTag:
            return self._open_each(cipher, *arguments)
        self._keep(headers[first], cipher)
        return None

    def _open_each(
        self,
        cipher: AESGCM,
        nonces: list[memoryview],
        sealed: list[memoryview],
        headers: list[memoryview],
        clear: list[memoryview],
    ) -> list[int]:
        """Open rows of which at least one is damaged or forged; for each the reason to drop it."""
        reasons = []
        for each in zip(nonces, sealed, headers, clear, strict=True):
            try:
                cipher.decrypt_into(*each)
            except InvalidTag:
                reasons.append(int(DropReason.BAD_CHECK))
            else:
                reasons.append(VERIFIED)
                self._keep(each[2], cipher)
        return reasons

    def _cipher_for(self, header: memoryview) -> AESGCM | DropReason:
        """The session key that a header names, or why the datagram is dropped whatever its tag says (GC-SEC-3)."""
        if header[:2] != _MAGIC:
            return DropReason.BAD_MAGIC
        if header[2] != VERSION:
            return DropReason.UNSUPPORTED_VERSION
        if header[8:12] != self._link_bytes:
            return DropReason.FOREIGN_LINK
        if not header[5] & Flag.SEALED:
            return DropReason.WRONG_SECURITY_MODE
        name = bytes(header[KEY_NAME_FIELD])
        cipher = self._ciphers.get(name) or self._new_cipher(name)
        return DropReason.UNKNOWN_KEY if cipher is None else cipher

    def _new_cipher(self, name: bytes) -> AESGCM | None:
        key_id, epoch, generation = name[0], int.from_bytes(name[1:9], "big"), int.from_bytes(name[9:], "big")
        secret = self._secrets.get(key_id)
        if secret is None:
            return None
        return AESGCM(session_key(secret, link_id=self._link_id, key_id=key_id, epoch=epoch, generation=generation))

    def _keep(self, header: memoryview, cipher: AESGCM) -> None:
        """Remember a session key that has opened a datagram."""
        name = bytes(header[KEY_NAME_FIELD])
        if name not in self._ciphers:
            if len(self._ciphers) >= CIPHERS_MAX:
                self._ciphers.pop(next(iter(self._ciphers)))
            self._ciphers[name] = cipher
