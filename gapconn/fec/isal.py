"""Intel ISA-L by cffi in ABI mode: no compiler is needed, and the vector units of the processor do the work.

The library checks nothing, so everything is checked before it is called.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib import metadata
from typing import Any, Final

import cffi
import numpy as np

from gapconn.protocol.fec import Bytes2D, check_shapes

WHEEL: Final = "pyeclib"
"""A wheel that carries the library. Only the file is used: the package's own functions abort the process on buffers
that they do not like."""
WHEEL_FILE: Final = "libisal-pyeclib.so.2"
SYSTEM_FILE: Final = "libisal.so.2"

_FFI = cffi.FFI()
_FFI.cdef(
    """
    void ec_init_tables(int k, int rows, unsigned char *a, unsigned char *g_tbls);
    void ec_encode_data(int len, int k, int rows, unsigned char *g_tbls, unsigned char **data, unsigned char **coding);
    """
)
_TABLE_BYTES_PER_COEFFICIENT = 32


class IsalCodec:
    """A `gapconn.protocol.fec.Codec`.

    Args:
        path: The library: a file, or a name that the system's loader finds.
        name: For the operator.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is another library.
    """

    TABLES_BYTES_MAX: Final = 4 << 20
    """Memory for prepared matrices: those for repair symbols are few and come again and again; those for lost symbols
    come again where single symbols are lost."""

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        library: Any = _FFI.dlopen(path)
        self._init_tables = library.ec_init_tables
        self._encode_data = library.ec_encode_data
        self._tables: OrderedDict[tuple[tuple[int, ...], bytes], Any] = OrderedDict()
        self._tables_bytes = 0

    def combine(self, coefficients: Bytes2D, symbols: Bytes2D, out: Bytes2D) -> None:
        """See `Codec`."""
        check_shapes(coefficients, symbols, out)
        rows, block_symbols = coefficients.shape
        self._encode_data(
            symbols.shape[1],
            block_symbols,
            rows,
            self._table(coefficients),
            _rows_of(symbols),
            _rows_of(out),
        )

    def _table(self, coefficients: Bytes2D) -> Any:
        key = (coefficients.shape, coefficients.tobytes())
        table = self._tables.get(key)
        if table is not None:
            self._tables.move_to_end(key)
            return table
        rows, block_symbols = coefficients.shape
        table = _FFI.new("unsigned char[]", _TABLE_BYTES_PER_COEFFICIENT * coefficients.size)
        self._init_tables(block_symbols, rows, _FFI.from_buffer("unsigned char[]", key[1]), table)
        self._tables[key] = table
        self._tables_bytes += len(table)
        while self._tables_bytes > self.TABLES_BYTES_MAX:
            _, oldest = self._tables.popitem(last=False)
            self._tables_bytes -= len(oldest)
        return table


def wheel_library() -> str | None:
    """Path of the library in the wheel, if that is installed."""
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == WHEEL_FILE), None)


def _rows_of(matrix: Bytes2D) -> Any:
    """Pointers to the rows, which need not lie one behind the other."""
    pointers = np.arange(len(matrix), dtype=np.uint64) * np.uint64(matrix.strides[0]) + np.uint64(matrix.ctypes.data)
    return _FFI.from_buffer("unsigned char *[]", pointers)
