"""Compressed bodies: what goes in comes out; and whatever else comes is refused in one way, and costs no memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import lz4.block
import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.errors import LocalProtocolError, RemoteProtocolError
from gapconn.protocol import compression
from gapconn.protocol.compression import ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN, Compressor, inflate
from gapconn.protocol.registry import Compression
from gapconn.protocol.sender import LinkSender, SenderSettings

METHODS = [Compression.ZSTD, Compression.LZ4]
LIMIT = 16 << 20
TEXT = b'{"order": 4711, "state": "shipped", "where": "Rotterdam"}\n' * 400

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name.lower())


def compressed(body: bytes, method: Compression) -> bytes:
    """`body`, compressed even if it gets longer."""
    if method == Compression.ZSTD:
        return zstandard.ZstdCompressor(level=1).compress(body)
    block: bytes = lz4.block.compress(body, store_size=False)
    return block


def refusal(body: bytes, method: Compression, plain_bytes: int, limit: int = LIMIT) -> str:
    """Why the body is refused; fails if it is not, or if more memory is taken than its length needs."""
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError) as refused:
            inflate(memoryview(body), method, plain_bytes, limit)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.reason == "damaged"
    assert peak_bytes <= min(plain_bytes, limit) + 200_000
    return str(refused.value)


def inflated_bytes(body: bytes, method: Compression, plain_bytes: int) -> int | None:
    """How many bytes came out; None if the body was refused."""
    reason = None
    try:
        return len(inflate(memoryview(body), method, plain_bytes, LIMIT))
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason == "damaged"
    return None


bodies = st.one_of(
    st.binary(max_size=2_000),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=20), st.integers(1, 5_000)),
)


@given(bodies, st.sampled_from(METHODS), st.sampled_from([ZSTD_LEVEL_MIN, 3, ZSTD_LEVEL_MAX]))
@settings(deadline=None)
@pytest.mark.req("GC-COMP-1", "GC-COMP-3")
def test_a_body_comes_out_as_it_went_in(body: bytes, method: Compression, level: int) -> None:
    packed = Compressor(method, level).compress(bytearray(body))
    if packed is None:
        assert len(compressed(body, method)) >= len(body) or level > 1
        return
    assert len(packed) < len(body)
    assert inflate(memoryview(packed), method, len(body), len(body)) == body


@each_method
@pytest.mark.req("GC-COMP-1")
def test_what_does_not_get_smaller_stays_plain(method: Compression) -> None:
    compressor = Compressor(method)
    assert compressor.compress(b"") is None
    assert compressor.compress(b"x") is None
    assert compressor.compress(random.Random(1).randbytes(100_000)) is None
    small = compressor.compress(TEXT)
    assert small is not None
    assert len(small) < len(TEXT) / 10


def test_a_plain_body_is_passed_on_without_a_copy() -> None:
    body = memoryview(bytearray(b"plain"))
    assert inflate(body, Compression.NONE, 0, 1) is body


@given(st.sampled_from(METHODS), st.data())
@settings(deadline=None, max_examples=300)
@pytest.mark.req("GC-COMP-3", "GC-MOD-6")
def test_damaged_bodies_never_give_another_length_and_never_crash(method: Compression, data: st.DataObject) -> None:
    """A check that fits says nothing about the sender's good will."""
    body = bytearray(compressed(TEXT[:3_000], method))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=5)):
        body[place] = value
    cut = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    announced = data.draw(st.sampled_from([3_000, 3_000, 2_999, 3_001, 1, LIMIT]))
    assert inflated_bytes(bytes(cut), method, announced) in (None, announced)


@given(st.binary(max_size=400), st.sampled_from(METHODS), st.integers(1, 100_000))
@settings(deadline=None, max_examples=300)
@pytest.mark.req("GC-COMP-3", "GC-MOD-6")
def test_any_bytes_are_inflated_or_refused(body: bytes, method: Compression, announced: int) -> None:
    for start in (b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x60" + (announced - 256 & 0xFFFF).to_bytes(2, "little")):
        assert inflated_bytes(start + body, method, announced) in (None, announced)


def zstd_bomb() -> bytes:
    """Says nothing of its size, and inflates to 64 MiB."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()


HOSTILE: dict[str, tuple[Compression, Callable[[], bytes], int]] = {
    "a zstd bomb": (Compression.ZSTD, zstd_bomb, 1_000),
    "a zstd frame that states its 64 MiB": (
        Compression.ZSTD,
        lambda: zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26)),
        1_000,
    ),
    "an lz4 bomb": (Compression.LZ4, lambda: lz4.block.compress(bytes(1 << 26), store_size=False), 1_000),
    "more than it announces": (Compression.ZSTD, lambda: compressed(TEXT, Compression.ZSTD), len(TEXT) - 1),
    "less than it announces": (Compression.ZSTD, lambda: compressed(TEXT, Compression.ZSTD), len(TEXT) + 1),
    "more than it announces, lz4": (Compression.LZ4, lambda: compressed(TEXT, Compression.LZ4), len(TEXT) - 1),
    "less than it announces, lz4": (Compression.LZ4, lambda: compressed(TEXT, Compression.LZ4), len(TEXT) + 1),
    "two frames": (Compression.ZSTD, lambda: 2 * compressed(TEXT, Compression.ZSTD), len(TEXT)),
    "a byte too many": (Compression.ZSTD, lambda: compressed(TEXT, Compression.ZSTD) + b"\0", len(TEXT)),
    "a byte too many, lz4": (Compression.LZ4, lambda: compressed(TEXT, Compression.LZ4) + b"\0", len(TEXT)),
    "a skippable frame": (Compression.ZSTD, lambda: b"\x50\x2a\x4d\x18" + (9).to_bytes(4, "little") + bytes(9), 9),
    "a window of 128 MiB": (Compression.ZSTD, lambda: b"\x28\xb5\x2f\xfd\xa0\x88" + bytes([9, 0, 0, 0, 1, 0, 0]), 9),
    "a dictionary that nobody has": (
        Compression.ZSTD,
        lambda: zstandard.ZstdCompressor(
            dict_data=zstandard.train_dictionary(1_000, [b"%d says %d" % (i, i * i) for i in range(1_000)])
        ).compress(TEXT),
        len(TEXT),
    ),
    "an lz4 frame instead of a block": (Compression.LZ4, lambda: lz4.frame.compress(TEXT), len(TEXT)),
    "nothing": (Compression.ZSTD, lambda: b"", 1),
    "nothing, lz4": (Compression.LZ4, lambda: b"", 1),
    "cut off": (Compression.ZSTD, lambda: compressed(TEXT, Compression.ZSTD)[:-1], len(TEXT)),
    "cut off, lz4": (Compression.LZ4, lambda: compressed(TEXT, Compression.LZ4)[:-1], len(TEXT)),
    "lz4 under the name of zstd": (Compression.ZSTD, lambda: compressed(TEXT, Compression.LZ4), len(TEXT)),
    "zstd under the name of lz4": (Compression.LZ4, lambda: compressed(TEXT, Compression.ZSTD), len(TEXT)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.req("GC-COMP-3", "GC-LIM-1")
def test_a_hostile_body_is_refused_and_takes_no_memory(name: str) -> None:
    method, make, announced = HOSTILE[name]
    refusal(make(), method, announced)


@each_method
@pytest.mark.req("GC-COMP-3", "GC-LIM-1")
def test_nothing_is_inflated_beyond_the_limit(method: Compression) -> None:
    body = compressed(bytes(LIMIT), method)
    assert "the limit is" in refusal(body, method, LIMIT, LIMIT - 1)
    assert inflate(memoryview(body), method, LIMIT, LIMIT) == bytes(LIMIT)


@pytest.mark.req("GC-COMP-1", "GC-DLV-3")
def test_a_body_that_was_too_long_is_refused_however_small_it_became() -> None:
    sender = LinkSender(SenderSettings(link_id=1, epoch=2, previous_epoch=1, message_bytes_max=65_536))
    sender.start(0.0)

    def write(buffer: bytearray, offset: int) -> None:
        buffer[offset:] = b"small"

    with pytest.raises(LocalProtocolError, match="longer than the limit"):
        sender.compose([], 1, write, 0.0, compression=Compression.ZSTD, plain_bytes=65_536)
    assert sender.compose([], 1, write, 0.0, compression=Compression.ZSTD, plain_bytes=65_000) == 0
    assert (sender.counters.body_bytes, sender.counters.plain_body_bytes) == (5, 65_000)


def _trusting_zstd(body: memoryview, plain_bytes: int) -> bytes:
    return zstandard.ZstdDecompressor().decompress(body)


def _generous_zstd(body: memoryview, plain_bytes: int) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


def _padding_lz4(body: memoryview, plain_bytes: int) -> bytes:
    plain: bytes = lz4.block.decompress(body, uncompressed_size=max(plain_bytes, 1 << 25))
    return plain[:plain_bytes]


@pytest.mark.parametrize(
    ("place", "bug"),
    [("_inflate_zstd", _trusting_zstd), ("_inflate_zstd", _generous_zstd), ("_inflate_lz4", _padding_lz4)],
)
@pytest.mark.req("GC-COMP-3")
def test_a_seeded_bug_is_found(place: str, bug: Callable[[memoryview, int], bytes]) -> None:
    """The hostile bodies are hostile: what trusts them is caught by one of them."""
    method = Compression.ZSTD if "zstd" in place else Compression.LZ4
    caught = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, place, bug)
        for name, (of, make, announced) in HOSTILE.items():
            if of == method:
                try:
                    refusal(make(), method, announced)
                except (AssertionError, pytest.fail.Exception):
                    caught.append(name)
    assert caught
