"""A message becomes datagrams: cut into equal symbols, built a burst at a time (spec/delivery.md, "Fragmentation")."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from gapconn.protocol import fec
from gapconn.protocol.buffers import Workspace
from gapconn.protocol.registry import SYMBOLS_PER_BLOCK_MAX, DatagramType
from gapconn.protocol.wire import OVERHEAD_BYTES, ROWS_MAX, Burst, Header, Slab, rows_per_burst

_COUNTING = np.arange(ROWS_MAX, dtype=np.uint64)


@attrs.frozen(kw_only=True)
class Cut:
    """How a message is cut (GC-DLV-2, GC-FEC-1)."""

    message_bytes: int
    symbol_bytes: int
    symbols: int
    """Source symbols."""
    rows: int
    """Datagrams per full burst."""
    blocks: int
    """Over which the symbols are spread: as few as can be."""
    repair_symbols: int
    """Of each block."""

    @property
    def datagrams(self) -> int:
        """Symbols of both kinds."""
        return self.symbols + self.blocks * self.repair_symbols


def cut_of(message_bytes: int, symbol_bytes_max: int, rows_max: int = ROWS_MAX, repair_share: int = 0) -> Cut:
    """The cut of a message.

    Args:
        message_bytes: Its length.
        symbol_bytes_max: What a datagram can carry of it.
        rows_max: Datagrams per burst at the most.
        repair_share: How many repair symbols, in hundredths of a percent of the source symbols.
    """
    at_least = -(-message_bytes // symbol_bytes_max)
    symbol_bytes = -(-message_bytes // at_least)
    symbols = -(-message_bytes // symbol_bytes)
    blocks = -(-symbols // (fec.block_symbols_max(repair_share) if repair_share else SYMBOLS_PER_BLOCK_MAX))
    return Cut(
        message_bytes=message_bytes,
        symbol_bytes=symbol_bytes,
        symbols=symbols,
        rows=min(rows_max, rows_per_burst(symbol_bytes + OVERHEAD_BYTES)),
        blocks=blocks,
        repair_symbols=fec.repair_symbols(-(-symbols // blocks), repair_share),
    )


class Fragmenter:
    """Builds the bursts of one message, one after the other, into slabs that the caller gives.

    Args:
        message: The whole message; zeros are appended to fill its last symbol.
        cut: How it is cut.
        link_id: Of the link.
        epoch: Of the session.
        number: Of the message.
        codec: Makes repair symbols, where the cut has some.
        workspace: For them, until the last burst is built.
    """

    def __init__(
        self,
        message: bytearray,
        *,
        cut: Cut,
        link_id: int,
        epoch: int,
        number: int,
        codec: fec.Codec,
        workspace: Workspace,
    ) -> None:
        self._cut = cut
        padding = cut.symbols * cut.symbol_bytes - cut.message_bytes
        message += bytes(padding)
        self._symbols: NDArray[np.uint8] = np.frombuffer(message, np.uint8).reshape(cut.symbols, cut.symbol_bytes)
        header = Header(
            type=DatagramType.DATA,
            link_id=link_id,
            epoch=epoch,
            sequence=0,
            symbol_bytes=cut.symbol_bytes,
            blocks=cut.blocks,
            repair_symbols=cut.repair_symbols,
            message=number,
            message_bytes=cut.message_bytes,
        )
        self._header = np.frombuffer(header.pack(), np.uint8).copy()
        """What all headers have in common, but for sequence and symbol."""
        self._next = 0
        self._codec = codec
        self._workspace = workspace
        self._repair: NDArray[np.uint8] | None = None

    @property
    def repair_symbols(self) -> int:
        """Repair symbols of the message."""
        return self._cut.blocks * self._cut.repair_symbols

    @property
    def bursts_left(self) -> int:
        """How many bursts are still to be built."""
        return -(-(self._cut.datagrams - self._next) // self._cut.rows)

    def build(self, slab: Slab, first_sequence: int) -> Burst:
        """The next burst, in `slab`, its datagrams numbered from `first_sequence` on."""
        cut, first = self._cut, self._next
        count = min(cut.rows, cut.datagrams - first)
        of_source = min(count, max(0, cut.symbols - first))
        self._next = first + count
        datagram_bytes = cut.symbol_bytes + OVERHEAD_BYTES
        rows = slab.layout(datagram_bytes, cut.rows)
        rows.header_bytes[:count] = self._header
        rows.sequences[:count] = _COUNTING[:count] + np.uint64(first_sequence)
        rows.symbols[:count] = _COUNTING[:count] + np.uint64(first)
        rows.payloads[:of_source] = self._symbols[first : first + of_source]
        if of_source < count:
            behind = first - cut.symbols
            rows.payloads[of_source:count] = self._repair_symbols()[behind + of_source : behind + count]
        rows.checks[:count] = np.fromiter(map(xxh3_64_intdigest, rows.covered[:count]), np.uint64, count)
        return Burst(slab, datagram_bytes, count)

    def _repair_symbols(self) -> NDArray[np.uint8]:
        """Made when the source symbols are on their way."""
        if self._repair is None:
            cut = self._cut
            self._repair = self._workspace.matrix(cut.blocks * cut.repair_symbols, cut.symbol_bytes)
            fec.encode(self._codec, self._symbols, self._repair, cut.blocks)
        return self._repair
