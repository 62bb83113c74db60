"""The option `[sink.dedup]`: repeats that come over one link are left out."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import structlog

from gapconn.check import check, summary
from gapconn.config import Role
from gapconn.dedup.repeats import RepeatFilter, SinkDedup
from gapconn.errors import ConfigError
from gapconn.pair_file import load_pair
from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind, Records
from gapconn.sinks import Delivery
from gapconn.units import Seconds

PAIR = (
    '[link]\nname = "x"\naddress = "127.0.0.1:7400"\n[source]\ntype = "udp"\nlisten = "127.0.0.1:1"\n'
    '[sink]\ntype = "udp"\nsend_to = "127.0.0.1:2"\n'
)


def a_filter(config: SinkDedup) -> tuple[RepeatFilter, Context]:
    context = Context(link="x", link_id=1, epoch=0, log=structlog.get_logger())
    return RepeatFilter(config, context), context


def delivery(*values: bytes | None, stream: str = "s") -> Delivery:
    records = Records(
        stream=stream,
        positions=list(range(len(values))),
        values=list(values),
        keys=[b"k"] * len(values),
        headers=[[("n", b"%d" % row)] for row in range(len(values))],
        timestamps_ms=list(range(len(values))),
    )
    return Delivery(epoch=1, message=1, lost_before=0, batch=Batch(parts=[records]), accept=lambda: None)


def test_repeats_go_and_each_row_stays_whole() -> None:
    repeats, context = a_filter(SinkDedup(identity="hash"))
    [part] = repeats.of(delivery(b"a", b"b", b"a", None, b"c")).batch.parts
    assert isinstance(part, Records)
    assert part.positions == [0, 1, 3, 4]
    assert part.values == [b"a", b"b", None, b"c"]
    assert part.headers == [[("n", b"%d" % row)] for row in (0, 1, 3, 4)]
    assert part.timestamps_ms == [0, 1, 3, 4]
    assert repeats.of(delivery(b"c", b"a")).batch.parts == []
    assert context.counters["repeats_dropped"] == 3


def test_streams_are_apart_and_what_has_no_id_passes() -> None:
    repeats, context = a_filter(SinkDedup(identity="field", field="id"))
    for stream in "st":
        assert repeats.of(delivery(b'{"id": 1}', stream=stream)).batch.record_count == 1
    assert repeats.of(delivery(b"no json", b"no json")).batch.record_count == 2
    assert repeats.of(delivery(b'{"id": 1, "more": 2}')).batch.record_count == 0
    assert context.counters["repeats_dropped"] == 1


def test_it_forgets_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    repeats, _ = a_filter(SinkDedup(identity="hash", window_records=2))
    for number in range(5):
        assert repeats.of(delivery(b"%d" % number)).batch.record_count == 1
    assert repeats.of(delivery(b"4")).batch.record_count == 0
    assert repeats.of(delivery(b"0")).batch.record_count == 1


def test_it_is_off_unless_asked_for_and_leaves_streams_of_bytes_alone() -> None:
    off, _ = a_filter(SinkDedup())
    twice = delivery(b"a", b"a")
    assert off.of(twice) is twice
    on, _ = a_filter(SinkDedup(identity="hash"))
    chunk = Chunk(stream="s", kind=ChunkKind.END, position=0)
    for _ in range(2):
        with_chunk = Delivery(epoch=1, message=1, lost_before=0, batch=Batch(parts=[chunk]), accept=lambda: None)
        assert on.of(with_chunk).batch.parts == [chunk]


def test_it_is_configured_in_the_section_of_the_sink(tmp_path: Path) -> None:
    path = tmp_path / "pair.toml"
    path.write_text(PAIR + '[sink.dedup]\nidentity = "hash"\nwindow = "2s"\n')
    pair = load_pair(path, {"GAPCONN_SINK_DEDUP_WINDOW": "3s"}, role=Role.EGRESS)
    assert pair.sink is not None
    assert pair.sink.config.dedup == SinkDedup(identity="hash", window=Seconds(3))
    report = check([path], {})
    assert any('dedup.identity = "hash", dedup.window = "2s"' in line for line in summary(report.pairs[0][1]))
    path.write_text(PAIR + '[sink.dedup]\nidentity = "field"\n')
    with pytest.raises(ConfigError, match=r"sink\.dedup\.field: missing, and identity ="):
        load_pair(path, {}, role=Role.EGRESS)


def test_what_is_sent_again_as_repair_passes() -> None:
    """It came before, and its target did not take it: the egress misses it."""
    repeats, context = a_filter(SinkDedup(identity="hash"))
    repeats.of(delivery(b"a", b"b"))
    repaired = attrs.evolve(delivery(b"a"), repair=True)
    assert repeats.of(repaired) is repaired
    assert context.counters["repeats_dropped"] == 0
