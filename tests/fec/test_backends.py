"""Every codec gives the bytes of the specification's vectors and of the other codecs; the fastest that works runs."""

from __future__ import annotations

import ctypes.util
import random
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from structlog.typing import FilteringBoundLogger

from gapconn.fec import choice
from gapconn.fec.choice import choose_codec, works
from gapconn.fec.isal import SYSTEM_FILE, IsalCodec, wheel_library
from gapconn.protocol.buffers import Workspace
from gapconn.protocol.fec import Bytes2D, Codec, NumpyCodec, encode, rebuild, repair_matrix
from tests.spec.vectors import Codes, read

WHEEL = wheel_library()


def available() -> list[Codec]:
    """All codecs of this machine; the two that come with the package are always there."""
    assert WHEEL is not None
    found: list[Codec] = [NumpyCodec(), IsalCodec(WHEEL, "wheel")]
    if ctypes.util.find_library("isal") is not None:
        found.append(IsalCodec(SYSTEM_FILE, "system"))
    return found


CODECS = available()
each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def log() -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


@each_codec
@pytest.mark.req("GC-FEC-2", "GC-FEC-3")
def test_the_vectors(codec: Codec) -> None:
    for vector in read(Codes, "fec").codes:
        source = np.array([list(bytes.fromhex(symbol)) for symbol in vector.source_hex], np.uint8)
        repair = np.zeros((len(vector.repair_hex), source.shape[1]), np.uint8)
        encode(codec, source, repair, vector.blocks)
        assert [bytes(row).hex() for row in repair] == vector.repair_hex
        present = np.ones(len(source) + len(repair), np.bool_)
        present[vector.lost] = False
        source[~present[: len(source)]] = 0
        repair[~present[len(source) :]] = 0
        rebuild(codec, source, repair, present=present, blocks=vector.blocks, workspace=Workspace())
        assert [bytes(row).hex() for row in source] == vector.source_hex


@given(
    st.integers(1, 200),
    st.integers(1, 55),
    st.one_of(st.integers(1, 130), st.sampled_from([1_416, 8_916])),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_all_give_the_same_bytes(block_symbols: int, rows: int, size_bytes: int, step: int, seed: int) -> None:
    """For any matrix, and for symbols that do not lie one behind the other; and nothing else is written."""
    chance = random.Random(seed)
    symbols = np.frombuffer(chance.randbytes(block_symbols * step * size_bytes), np.uint8)
    symbols = symbols.reshape(-1, size_bytes)[step - 1 :: step]
    coefficients = np.frombuffer(chance.randbytes(rows * block_symbols), np.uint8).reshape(rows, block_symbols)
    results = []
    for codec in CODECS:
        room = np.full((rows * step + 1, size_bytes), 0xA5, np.uint8)
        codec.combine(coefficients, symbols, room[1::step][:rows])
        results.append(room.tobytes())
        room[1::step][:rows] = 0xA5
        assert (room == 0xA5).all()
    assert len(set(results)) == 1


@each_codec
@pytest.mark.parametrize(
    ("coefficients", "symbols", "out"),
    [
        pytest.param(np.ones((2, 3), np.uint8), np.ones((4, 9), np.uint8), np.ones((2, 9), np.uint8), id="count"),
        pytest.param(np.ones((2, 3), np.uint8), np.ones((3, 9), np.uint8), np.ones((3, 9), np.uint8), id="rows"),
        pytest.param(np.ones((2, 3), np.uint8), np.ones((3, 9), np.uint8), np.ones((2, 8), np.uint8), id="length"),
        pytest.param(np.ones((2, 3), np.uint8), np.ones((3, 0), np.uint8), np.ones((2, 0), np.uint8), id="nothing"),
        pytest.param(np.ones((0, 3), np.uint8), np.ones((3, 9), np.uint8), np.ones((0, 9), np.uint8), id="no rows"),
        pytest.param(np.ones((1, 256), np.uint8), np.ones((256, 9), np.uint8), np.ones((1, 9), np.uint8), id="many"),
        pytest.param(np.ones((2, 3), np.uint8), np.ones((9, 3), np.uint8).T, np.ones((2, 9), np.uint8), id="columns"),
        pytest.param(np.ones((2, 3), np.uint8), np.ones((3, 9), np.uint16), np.ones((2, 9), np.uint8), id="words"),
    ],
)
def test_what_does_not_fit_is_refused(codec: Codec, coefficients: Bytes2D, symbols: Bytes2D, out: Bytes2D) -> None:
    with pytest.raises(ValueError, match="does not make"):
        codec.combine(coefficients, symbols, out)


def test_prepared_matrices_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WHEEL is not None
    monkeypatch.setattr(IsalCodec, "TABLES_BYTES_MAX", 32 * 10 * 5)
    codec = IsalCodec(WHEEL, "wheel")
    symbols, made, expected = np.ones((10, 40), np.uint8), np.zeros((1, 40), np.uint8), np.zeros((1, 40), np.uint8)
    for factor in [*range(1, 30), 28, 2]:
        coefficients = np.full((1, 10), factor, np.uint8)
        coefficients[0, 0] = 1
        codec.combine(coefficients, symbols, made)
        NumpyCodec().combine(coefficients, symbols, expected)
        assert np.array_equal(made, expected)
    assert len(codec._tables) == 5
    assert codec._tables_bytes == 5 * 32 * 10


class _Wrong(NumpyCodec):
    name = "wrong"

    def combine(self, coefficients: Bytes2D, symbols: Bytes2D, out: Bytes2D) -> None:
        super().combine(coefficients, symbols, out)
        out[-1, -1] ^= 1


def test_the_library_of_the_wheel_is_the_first_choice() -> None:
    with capture_logs() as logs:
        assert choose_codec(log()).name == "isa-l (wheel)"
    assert logs == []


def test_a_library_that_gives_wrong_bytes_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "candidates", lambda: [_Wrong, lambda: CODECS[1]])
    with capture_logs() as logs:
        assert choose_codec(log()) is CODECS[1]
    assert [(entry["event"], entry["backend"]) for entry in logs] == [("fec_backend_unusable", "wrong")]


def test_without_a_library_the_slow_one_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "wheel_library", lambda: None)
    monkeypatch.setattr(choice, "SYSTEM_FILE", "libno-such-thing.so.9")
    with capture_logs() as logs:
        assert choose_codec(log()).name == "numpy"
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("fec_backend_slow", "warning")
    assert "pyeclib" in entry["remedy"]


def test_another_library_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loads and does not have the functions."""

    def candidates() -> list[Any]:
        return [lambda: IsalCodec("libc.so.6", "not isa-l"), NumpyCodec]

    monkeypatch.setattr(choice, "candidates", candidates)
    with capture_logs():
        assert choose_codec(log()).name == "numpy"


@each_codec
def test_each_passes_its_test_at_the_start(codec: Codec) -> None:
    assert works(codec)
    assert not works(_Wrong())


def test_a_matrix_that_is_kept_is_not_changed_from_outside() -> None:
    """The matrices for repair symbols are shared by all messages."""
    before = repair_matrix(5, 3).copy()
    for codec in CODECS:
        codec.combine(repair_matrix(5, 3), np.ones((5, 40), np.uint8), np.zeros((3, 40), np.uint8))
    assert np.array_equal(before, repair_matrix(5, 3))
