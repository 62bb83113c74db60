"""Forward error correction: a systematic Cauchy Reed-Solomon code over GF(2^8) (spec/fec.md).

Two matrices are all there is to it: one makes the repair symbols of a block, the other makes lost symbols of it again.
The entries of both are products of differences, so no matrix is inverted and none can be singular. Multiplying a matrix
with the symbols is where the time goes, and is left to a `Codec`: the one here, or a faster one from outside.

In GF(2^8) addition and subtraction are both XOR; multiplication is addition of logarithms.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gapconn.protocol.buffers import Workspace
from gapconn.protocol.registry import SYMBOLS_PER_BLOCK_MAX

Bytes2D = NDArray[np.uint8]

BLOCK_SYMBOLS_MAX = 128
"""Source symbols of a block at the most: the work for a byte is proportional to the repair symbols of its block."""
WHOLE = 10_000
"""Shares of repair symbols are in hundredths of a percent: this is as many repair symbols as source symbols."""


class Codec(Protocol):
    """Multiplies matrices over GF(2^8). All codecs give the same bytes."""

    @property
    def name(self) -> str:
        """For the operator."""

    def combine(self, coefficients: Bytes2D, symbols: Bytes2D, out: Bytes2D) -> None:
        """Write sums of symbols: `out[i]` becomes the sum over j of `coefficients[i, j] * symbols[j]`.

        Args:
            coefficients: (rows, k), contiguous.
            symbols: (k, bytes). Rows may lie anywhere at equal distances; each is contiguous.
            out: (rows, bytes), the same; shares no memory with `symbols`.

        Raises:
            ValueError: these are not their shapes.
        """


def block_symbols_max(repair_share: int) -> int:
    """Source symbols of a block at the most, so that with the repair symbols there are not too many."""
    return min(BLOCK_SYMBOLS_MAX, SYMBOLS_PER_BLOCK_MAX * WHOLE // (WHOLE + repair_share))


def repair_symbols(block_symbols: int, repair_share: int) -> int:
    """Repair symbols for a block of so many source symbols: the share rounded up, so at least one if there is any."""
    return -(-block_symbols * repair_share // WHOLE)


def encode(codec: Codec, source: Bytes2D, repair: Bytes2D, blocks: int) -> None:
    """Make the repair symbols of a message (GC-FEC-2).

    Args:
        codec: Does the work.
        source: (source symbols of the message, bytes).
        repair: (repair symbols of the message, bytes): is filled.
        blocks: Blocks of the message.
    """
    if len(source) == len(repair) == 1:  # the matrix is a one: small messages are many, and are in a hurry
        repair[:] = source
        return
    for block in range(blocks):
        symbols = source[block::blocks]
        codec.combine(repair_matrix(len(symbols), len(repair) // blocks), symbols, repair[block::blocks])


def rebuild(
    codec: Codec,
    source: Bytes2D,
    repair: Bytes2D,
    *,
    present: NDArray[np.bool_],
    blocks: int,
    workspace: Workspace,
) -> int:
    """Make the lost source symbols of a message again, in their places (GC-FEC-3).

    Args:
        codec: Does the work.
        source: (source symbols of the message, bytes).
        repair: (repair symbols of the message, bytes).
        present: Which of them are there, by their numbers. Each block has at least as many as it has source symbols.
        blocks: Blocks of the message.
        workspace: For what is made.

    Returns:
        How many symbols were made.
    """
    missing = np.flatnonzero(~present[: len(source)])
    of_block = missing % blocks
    for block in np.unique(of_block).tolist():
        symbols, repairs = source[block::blocks], repair[block::blocks]
        lost = missing[of_block == block] // blocks
        used = np.flatnonzero(present[len(source) + block :: blocks])[: len(lost)]
        # The repair symbols stand in for the lost ones: so the block is one matrix, and is not gathered anew.
        symbols[lost] = repairs[used]
        made = workspace.matrix(len(lost), source.shape[1])
        codec.combine(rebuild_matrix(len(symbols), lost, used), symbols, made)
        symbols[lost] = made
    return len(missing)


@functools.lru_cache(maxsize=64)
def repair_matrix(block_symbols: int, repairs: int) -> Bytes2D:
    """(repair symbols, source symbols): what the repair symbols of a block are made with (GC-FEC-2)."""
    rows = np.arange(block_symbols, block_symbols + repairs)
    matrix: Bytes2D = _EXP[-_LOG[rows[:, np.newaxis] ^ np.arange(block_symbols)] % 255]
    return matrix


def rebuild_matrix(block_symbols: int, lost: NDArray[np.intp], used: NDArray[np.intp]) -> Bytes2D:
    """(lost symbols, source symbols): what the lost symbols of a block are made with.

    Its columns are the symbols of the block, with the repair symbols `used` in the places of those `lost`. An entry is

        H[i] * W[j] / (y[i] - z[j])    H[i] = prod(y[i] - x) / prod(y[i] - y)    W[j] = prod(z[j] - y) / prod(z[j] - x)

    where y are the lost symbols, x the repair symbols used, z the symbols that are there, all by their numbers in the
    block, and the products leave out what would be 0. This solves the equations of the repair symbols: the function
    that is the sum of a[i] / (x - y[i]) less 1 / (x - z[j]) is zero at each x, and that fixes its numerator.

    Args:
        block_symbols: Source symbols of the block.
        lost: Which source symbols are to be made.
        used: As many repair symbols, each once.
    """
    x = used + block_symbols
    z = np.arange(block_symbols)
    z[lost] = x
    log_h = _log_of_product(lost, x) - _log_of_product(lost, lost)
    log_w = _log_of_product(z, lost) - _log_of_product(z, x)
    matrix: Bytes2D = _EXP[(log_h[:, np.newaxis] + log_w - _LOG[lost[:, np.newaxis] ^ z]) % 255]
    return matrix


def _log_of_product(these: NDArray[np.intp], others: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of these, the logarithm of the product of its differences to the others; itself is left out."""
    logs: NDArray[np.intp] = _LOG[these[:, np.newaxis] ^ others].sum(axis=1)
    return logs


def _tables() -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    powers = np.zeros(255, np.uint8)
    logs = np.zeros(256, np.intp)  # that of 0 does not exist; 0 leaves a factor out of a product
    power = 1
    for exponent in range(255):
        powers[exponent] = power
        logs[power] = exponent
        power = power << 1 ^ (0x11D if power & 0x80 else 0)
    return powers, logs


_EXP, _LOG = _tables()


@functools.cache
def _products() -> Bytes2D:
    """The products of all pairs of bytes."""
    products: Bytes2D = _EXP[(_LOG[:, np.newaxis] + _LOG) % 255]
    products[0] = products[:, 0] = 0
    return products


class NumpyCodec:
    """A `Codec` that needs nothing else; slow."""

    name = "numpy"

    _LANES = 8
    """Rows that one look-up serves: their products with a byte are the bytes of one 64-bit word."""

    def combine(self, coefficients: Bytes2D, symbols: Bytes2D, out: Bytes2D) -> None:
        """See `Codec`."""
        check_shapes(coefficients, symbols, out)
        products = _products()
        for first in range(0, len(coefficients), self._LANES):
            lanes = coefficients[first : first + self._LANES]
            total = np.zeros(symbols.shape[1], np.uint64)
            words = np.zeros((256, self._LANES), np.uint8)
            for column, symbol in zip(lanes.T, symbols, strict=True):
                words[:, : len(lanes)] = products[:, column]
                total ^= words.view(np.uint64)[:, 0][symbol]
            out[first : first + self._LANES] = total.view(np.uint8).reshape(-1, self._LANES)[:, : len(lanes)].T


def check_shapes(coefficients: Bytes2D, symbols: Bytes2D, out: Bytes2D) -> None:
    """Refuse arguments of `Codec.combine` that do not fit: a codec in C would write anywhere.

    Raises:
        ValueError: they do not.
    """
    rows, block_symbols = coefficients.shape
    size_bytes = symbols.shape[1]
    fits = (
        1 <= rows <= SYMBOLS_PER_BLOCK_MAX
        and 1 <= block_symbols <= SYMBOLS_PER_BLOCK_MAX
        and size_bytes >= 1
        and symbols.shape == (block_symbols, size_bytes)
        and out.shape == (rows, size_bytes)
        and coefficients.dtype == symbols.dtype == out.dtype == np.uint8
        and symbols.strides[1] == out.strides[1] == 1
        and out.flags.writeable
    )
    if not fits:
        raise ValueError(f"a matrix {coefficients.shape} does not make {out.shape} of symbols {symbols.shape}")
