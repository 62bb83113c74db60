"""The code of spec/fec.md a second time: naive, symbol by symbol, without the core and without NumPy."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence


def times(a: int, b: int) -> int:
    """The product in GF(2^8) with the polynomial 0x11d, by long multiplication."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


@functools.cache
def inverse(a: int) -> int:
    """What `a`, which is not 0, has to be multiplied with to give 1."""
    return next(b for b in range(1, 256) if times(a, b) == 1)


@functools.cache
def _times_table(a: int) -> bytes:
    return bytes(times(a, b) for b in range(256))


def scaled(factor: int, symbol: bytes) -> bytes:
    """Each byte of the symbol, times the factor."""
    return symbol.translate(_times_table(factor))


def total(symbols: Iterable[bytes], size: int) -> bytes:
    """The sum of symbols of so many bytes."""
    sum_ = 0
    for symbol in symbols:
        sum_ ^= int.from_bytes(symbol, "big")
    return sum_.to_bytes(size, "big")


def repair_of_block(block: Sequence[bytes], number: int) -> bytes:
    """GC-FEC-2."""
    k = len(block)
    return total((scaled(inverse((k + number) ^ j), block[j]) for j in range(k)), len(block[0]))


def repair_of(symbols: Sequence[bytes], blocks: int, repair_symbols: int) -> list[bytes]:
    """The repair symbols of a message, in the order of their numbers."""
    return [repair_of_block(symbols[b::blocks], r) for r in range(repair_symbols) for b in range(blocks)]


def rebuilt_block(block: Sequence[bytes | None], repair: Mapping[int, bytes]) -> list[bytes]:
    """The block without its holes, from as many repair symbols, by number, as it has holes: Gauss and Jordan."""
    k = len(block)
    holes = [j for j in range(k) if block[j] is None]
    assert len(repair) == len(holes)
    rows, sides = [], []
    for r, symbol in repair.items():
        rows.append([inverse((k + r) ^ j) for j in holes])
        known = (scaled(inverse((k + r) ^ j), there) for j, there in enumerate(block) if there is not None)
        sides.append(total([symbol, *known], len(symbol)))
    for i in range(len(holes)):
        pivot = next(n for n in range(i, len(rows)) if rows[n][i])
        rows[i], rows[pivot], sides[i], sides[pivot] = rows[pivot], rows[i], sides[pivot], sides[i]
        factor = inverse(rows[i][i])
        rows[i], sides[i] = [times(factor, a) for a in rows[i]], scaled(factor, sides[i])
        for n in range(len(rows)):
            if n != i and rows[n][i]:
                factor = rows[n][i]
                rows[n] = [a ^ times(factor, b) for a, b in zip(rows[n], rows[i], strict=True)]
                sides[n] = total([sides[n], scaled(factor, sides[i])], len(sides[n]))
    made = dict(zip(holes, sides, strict=True))
    return [made[j] if there is None else there for j, there in enumerate(block)]
