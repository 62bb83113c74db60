"""The configuration reference is what the models say, and the examples are valid."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from gapconn.check import check
from gapconn.config import Admin, Fec, Link, Log, Security
from gapconn.dedup.config import INPUT_TYPES, OUTPUT_TYPES, Dedup, Kafka, load_dedup
from gapconn.dedup.repeats import SinkDedup
from gapconn.pair_file import load_pair
from gapconn.reference import render
from gapconn.sinks import SINKS
from gapconn.sources import SOURCES

DOCS = Path(__file__).parent.parent / "docs"
DEDUP_EXAMPLE = DOCS / "examples" / "dedup.toml"
EXAMPLES = sorted(set((DOCS / "examples").glob("*.toml")) - {DEDUP_EXAMPLE})
SECRETS = {"SOURCE_KAFKA_PASSWORD": "s", "TARGET_KAFKA_PASSWORD": "t"}


def test_the_committed_reference_is_up_to_date() -> None:
    assert (DOCS / "configuration.md").read_text() == render(), (
        "run: python -m gapconn.reference > docs/configuration.md"
    )


def test_every_key_is_in_the_reference() -> None:
    reference = render()
    plugins = [registry.load(name) for registry in (SOURCES, SINKS) for name in registry.names()]
    dedup = (Dedup, Kafka, *INPUT_TYPES.values(), *OUTPUT_TYPES.values())
    for model in (Link, Fec, Security, Admin, Log, SinkDedup, *dedup, *(plugin.Config for plugin in plugins)):
        for field in attrs.fields(model):
            is_table = "subsection" in field.metadata
            section = "link" if model is Link else "sink"
            assert (f"## `[{section}.{field.name}]`" if is_table else f"| `{field.name}` |") in reference
            assert field.metadata["help"].strip(), f"{model.__name__}.{field.name} has no help"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(path: Path) -> None:
    assert check([path], SECRETS).problems == []


def test_the_examples_can_run_side_by_side() -> None:
    assert check(EXAMPLES, SECRETS).problems == []


def test_there_is_an_example_for_every_source_and_sink() -> None:
    pairs = [load_pair(path, SECRETS) for path in EXAMPLES]
    assert {pair.source.type for pair in pairs if pair.source} == set(SOURCES.names())
    assert {pair.sink.type for pair in pairs if pair.sink} == set(SINKS.names())


def test_the_example_of_a_deduplicator_is_valid() -> None:
    assert load_dedup(DEDUP_EXAMPLE, SECRETS).links == ["a", "b"]
