"""Which codec runs: the fastest that works here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from structlog.typing import FilteringBoundLogger

from gapconn.fec.isal import SYSTEM_FILE, IsalCodec, wheel_library
from gapconn.protocol.fec import Codec, NumpyCodec, rebuild_matrix, repair_matrix

SLOW = NumpyCodec.name


def candidates() -> Iterable[Callable[[], Codec]]:
    """The codecs, the fastest first. Making one may raise `OSError` or `AttributeError`."""
    wheel = wheel_library()
    if wheel is not None:
        yield lambda: IsalCodec(wheel, "isa-l (wheel)")
    yield lambda: IsalCodec(SYSTEM_FILE, "isa-l (system)")
    yield NumpyCodec


def choose_codec(log: FilteringBoundLogger) -> Codec:
    """The fastest codec that gives the right bytes on this machine."""
    for make in candidates():
        try:
            codec = make()
        except (OSError, AttributeError):  # not there, or not what its name says
            continue
        if codec.name == SLOW:
            log.warning(
                "fec_backend_slow",
                backend=codec.name,
                remedy=f"install the package pyeclib, or the system's ISA-L ({SYSTEM_FILE})",
            )
            return codec
        if works(codec):
            return codec
        log.error("fec_backend_unusable", backend=codec.name, error="it gives wrong bytes")
    raise AssertionError("the last candidate always works")


def works(codec: Codec) -> bool:
    """Whether the codec gives the bytes that the slow one gives: short and odd lengths, many rows, a rebuilt block."""
    slow = NumpyCodec()
    for block_symbols, repairs, size_bytes in ((1, 1, 1), (5, 3, 33), (40, 9, 127), (128, 13, 1_000)):
        matrix = repair_matrix(block_symbols, repairs)
        numbers = np.arange(block_symbols * size_bytes, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        symbols = (numbers >> np.uint64(56)).astype(np.uint8).reshape(block_symbols, size_bytes)
        made, expected = np.zeros((2, repairs, size_bytes), np.uint8)
        codec.combine(matrix, symbols, made)
        slow.combine(matrix, symbols, expected)
        if not np.array_equal(made, expected):
            return False
        count = min(block_symbols, repairs)
        lost, used = np.arange(count), np.arange(repairs - count, repairs)
        damaged = symbols.copy()
        damaged[lost] = made[used]
        rebuilt = np.zeros((count, size_bytes), np.uint8)
        codec.combine(rebuild_matrix(block_symbols, lost, used), damaged, rebuilt)
        if not np.array_equal(rebuilt, symbols[lost]):
            return False
    return True
