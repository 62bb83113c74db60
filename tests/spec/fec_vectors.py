"""What is in `fec.json`: messages with their repair symbols, and losses that they make good. Made without the core."""

from __future__ import annotations

from tests.protocol import galois
from tests.spec.vectors import Code, Codes


def codes() -> Codes:
    """fec.json."""
    return Codes(
        codes=[
            _code("the example in fec.md", [b"\1\2", b"\3\4", b"\5\6"], 1, 2, [0, 2]),
            _code("one symbol, one repair symbol", [b"\x80\xff\0"], 1, 1, [0]),
            _code("one symbol lost of a block", _symbols(5, 4), 1, 1, [3]),
            _code("repair symbols lost too", _symbols(5, 4), 1, 3, [1, 5, 7]),
            _code("as many lost as can be", _symbols(6, 8), 1, 4, [0, 1, 4, 5]),
            _code("two blocks of unequal size, a burst", _symbols(7, 3), 2, 2, [2, 3, 4, 5]),
            _code("each block loses its last symbol and its first repair symbol", _symbols(9, 2), 3, 2, [6, 7, 8, 9]),
            _code("nothing lost", _symbols(4, 4), 2, 1, []),
            _code("more repair symbols than source symbols", _symbols(2, 5), 1, 4, [0, 1, 2, 4]),
            _code("the largest block", _symbols(128, 1), 1, 127, [*range(127)]),
        ]
    )


def _code(name: str, source: list[bytes], blocks: int, repair_symbols: int, lost: list[int]) -> Code:
    repair = galois.repair_of(source, blocks, repair_symbols)
    return Code(
        name=name,
        blocks=blocks,
        repair_symbols=repair_symbols,
        source_hex=[symbol.hex() for symbol in source],
        repair_hex=[symbol.hex() for symbol in repair],
        lost=lost,
    )


def _symbols(count: int, size_bytes: int) -> list[bytes]:
    return [bytes((i * 89 + j * 151 + i * i * 7) % 256 for j in range(size_bytes)) for i in range(count)]
