"""Bodies of messages, compressed and inflated: pure functions of bytes (spec/compression.md).

What comes out of `inflate` is bounded before the decompressor runs: a body that lies about itself costs no memory.
Both functions let go of Python's lock while they work, so a thread of their own is worth it for large bodies.
"""

from __future__ import annotations

from collections.abc import Callable

import lz4.block
import zstandard

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.registry import Compression

ZSTD_LEVEL_MIN = 1
ZSTD_LEVEL_MAX = 19
"""Higher levels take hundreds of megabytes, and seconds for a message."""

_WINDOW_BYTES_MIN = 1 << 10
"""The smallest window that a Zstandard frame can ask for (RFC 8878, 3.1.1.1.2)."""


class Compressor:
    """Compresses bodies one after the other; not to be used by two threads at once.

    Args:
        compression: How.
        level: Of Zstandard, from `ZSTD_LEVEL_MIN` to `ZSTD_LEVEL_MAX`; LZ4 has none.
    """

    def __init__(self, compression: Compression, level: int = ZSTD_LEVEL_MIN) -> None:
        self.compression = compression
        self._compress: Callable[[bytes | bytearray | memoryview], bytes]
        match compression:
            case Compression.NONE:
                raise ValueError("nothing to do")
            case Compression.ZSTD:
                self._compress = zstandard.ZstdCompressor(level=level, write_content_size=True).compress
            case Compression.LZ4:
                self._compress = _lz4_block

    def compress(self, body: bytes | bytearray | memoryview) -> bytes | None:
        """The compressed body; None when it is not shorter than `body` (GC-COMP-1)."""
        if not body:
            return None
        compressed = self._compress(body)
        return compressed if len(compressed) < len(body) else None


def inflate(body: memoryview, compression: Compression, plain_bytes: int, plain_bytes_max: int) -> memoryview:
    """The body as it was before it was compressed; a plain one as it is (GC-COMP-3).

    Args:
        body: As it crossed.
        compression: How it is compressed.
        plain_bytes: Length that the message announces; 0 if it is plain.
        plain_bytes_max: The longest that may come out.

    Raises:
        RemoteProtocolError: it does not inflate to exactly `plain_bytes`, or these are too many (reason `damaged`).
            Then no memory was taken for more than `plain_bytes_max`.
    """
    if compression == Compression.NONE:
        return body
    if plain_bytes > plain_bytes_max:
        raise RemoteProtocolError(
            f"the body would inflate to {plain_bytes} bytes, and the limit is {plain_bytes_max}", reason="damaged"
        )
    try:
        plain = _inflate_zstd(body, plain_bytes) if compression == Compression.ZSTD else _inflate_lz4(body, plain_bytes)
    except (zstandard.ZstdError, lz4.block.LZ4BlockError) as error:
        raise RemoteProtocolError(f"the body cannot be inflated: {error}", reason="damaged") from error
    if len(plain) != plain_bytes:
        raise RemoteProtocolError(f"the body inflates to {len(plain)} bytes, not {plain_bytes}", reason="damaged")
    return memoryview(plain)


def _inflate_zstd(body: memoryview, plain_bytes: int) -> bytes:
    # The decompressor takes the memory that the frame asks for, so the frame is asked first.
    frame = zstandard.get_frame_parameters(body)
    if frame.content_size != plain_bytes or frame.window_size > max(plain_bytes, _WINDOW_BYTES_MIN):
        raise zstandard.ZstdError("the frame states another size than the message")
    return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)


def _lz4_block(body: bytes | bytearray | memoryview) -> bytes:
    compressed: bytes = lz4.block.compress(body, store_size=False)
    return compressed


def _inflate_lz4(body: memoryview, plain_bytes: int) -> bytes:
    plain: bytes = lz4.block.decompress(body, uncompressed_size=plain_bytes)
    return plain
