"""A message becomes datagrams: cut into equal symbols, built a burst at a time (spec/delivery.md, "Fragmentation")."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from gapconn.protocol import fec
from gapconn.protocol.buffers import Workspace
from gapconn.protocol.protection import CHECKSUM, Protector
from gapconn.protocol.registry import HEADER_BYTES, SYMBOLS_PER_BLOCK_MAX, DatagramType
from gapconn.protocol.wire import KEY_ID_FIELD, OVERHEAD_BYTES, ROWS_MAX, Burst, Header, Slab, rows_per_burst

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
    def all_repair_symbols(self) -> int:
        """Of the whole message."""
        return self.blocks * self.repair_symbols

    @property
    def in_one_burst(self) -> bool:
        """Whether source and repair symbols travel together: a burst more takes longer than to make a few of them."""
        return self.symbols + self.all_repair_symbols <= self.rows

    @property
    def bursts(self) -> int:
        """Where it is more than one, none has both kinds: no source symbol waits for repair symbols to be made."""
        if self.in_one_burst:
            return 1
        return -(-self.symbols // self.rows) - (-self.all_repair_symbols // self.rows)


def cut_of(
    message_bytes: int,
    symbol_bytes_max: int,
    rows_max: int = ROWS_MAX,
    repair_share: int = 0,
    overhead_bytes: int = OVERHEAD_BYTES,
) -> Cut:
    """The cut of a message.

    Args:
        message_bytes: Its length.
        symbol_bytes_max: What a datagram can carry of it.
        rows_max: Datagrams per burst at the most.
        repair_share: How many repair symbols, in hundredths of a percent of the source symbols.
        overhead_bytes: What a datagram has beside its symbol.
    """
    at_least = -(-message_bytes // symbol_bytes_max)
    symbol_bytes = -(-message_bytes // at_least)
    symbols = -(-message_bytes // symbol_bytes)
    blocks = -(-symbols // (fec.block_symbols_max(repair_share) if repair_share else SYMBOLS_PER_BLOCK_MAX))
    return Cut(
        message_bytes=message_bytes,
        symbol_bytes=symbol_bytes,
        symbols=symbols,
        rows=min(rows_max, rows_per_burst(symbol_bytes + overhead_bytes)),
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
        protector: Finishes the datagrams. Its key may change between two bursts.
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
        protector: Protector = CHECKSUM,
    ) -> None:
        self._cut = cut
        self._protector = protector
        padding = cut.symbols * cut.symbol_bytes - cut.message_bytes
        message += bytes(padding)
        self._symbols: NDArray[np.uint8] = np.frombuffer(message, np.uint8).reshape(cut.symbols, cut.symbol_bytes)
        header = Header(
            type=DatagramType.DATA,
            link_id=link_id,
            epoch=epoch,
            sequence=0,
            flags=protector.flags,
            symbol_bytes=cut.symbol_bytes,
            blocks=cut.blocks,
            repair_symbols=cut.repair_symbols,
            message=number,
            message_bytes=cut.message_bytes,
        )
        self._header = np.frombuffer(header.pack(), np.uint8).copy()
        """What all headers have in common, but for key, sequence and symbol."""
        self._next = 0
        self.bursts_left = cut.bursts
        """How many bursts are still to be built."""
        self._codec = codec
        self._workspace = workspace
        self._repair: NDArray[np.uint8] | None = None

    @property
    def repair_symbols(self) -> int:
        """Repair symbols of the message."""
        return self._cut.all_repair_symbols

    @property
    def rows(self) -> int:
        """Datagrams of a burst, at the most."""
        return self._cut.rows

    @property
    def datagram_bytes(self) -> int:
        """UDP payload of each datagram."""
        return HEADER_BYTES + self._cut.symbol_bytes + self._protector.trailer_bytes

    def build(self, slab: Slab, first_sequence: int) -> Burst:
        """The next burst, in `slab`, its datagrams numbered from `first_sequence` on."""
        cut, first = self._cut, self._next
        source_only = first < cut.symbols and not cut.in_one_burst
        count = min(cut.rows, (cut.symbols if source_only else cut.symbols + cut.all_repair_symbols) - first)
        self._next = first + count
        self.bursts_left -= 1
        trailer_bytes = self._protector.trailer_bytes
        datagram_bytes = self.datagram_bytes
        rows = slab.layout(datagram_bytes, cut.rows, trailer_bytes=trailer_bytes)
        self._header[KEY_ID_FIELD] = self._protector.key_id
        rows.header_bytes[:count] = self._header
        rows.sequences[:count] = _COUNTING[:count] + np.uint64(first_sequence)
        rows.symbols[:count] = _COUNTING[:count] + np.uint64(first)
        self._put_symbols(rows.payloads, first, count)
        self._protector.protect(rows, count)
        return Burst(slab, datagram_bytes, count)

    def _put_symbols(self, payloads: NDArray[np.uint8], first: int, count: int) -> None:
        """Put `count` symbols into as many rows, from number `first` on."""
        cut = self._cut
        behind = first - cut.symbols  # of the source symbols
        if behind >= 0:
            payloads[:count] = self._repair_symbols()[behind : behind + count]
        elif first + count <= cut.symbols:
            payloads[:count] = self._symbols[first : first + count]
        else:
            payloads[: cut.symbols] = self._symbols
            fec.encode(self._codec, self._symbols, payloads[cut.symbols : count], cut.blocks)

    def _repair_symbols(self) -> NDArray[np.uint8]:
        """Made when the source symbols are on their way."""
        if self._repair is None:
            cut = self._cut
            self._repair = self._workspace.matrix(cut.all_repair_symbols, cut.symbol_bytes)
            fec.encode(self._codec, self._symbols, self._repair, cut.blocks)
        return self._repair
