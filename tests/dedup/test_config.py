"""The file of a deduplicator: what is right, and what each mistake is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gapconn.cli import main
from gapconn.dedup.config import KafkaInput, load_dedup
from gapconn.errors import ConfigError
from gapconn.units import Seconds

DEDUP = '[dedup]\nname = "orders"\n'
INPUTS = '[[input]]\nlink = "a"\ntopic = "a-{topic}"\n[[input]]\nlink = "b"\ntopic = "b-{topic}"\n'
KAFKA = '[kafka]\nbootstrap_servers = "k:9092"\n'
UDP = (
    '[[input]]\ntype = "udp"\nlink = "a"\nlisten = "127.0.0.1:1"\n'
    '[[input]]\ntype = "udp"\nlink = "b"\nlisten = "127.0.0.1:2"\n'
    '[output]\ntype = "udp"\nsend_to = "127.0.0.1:3"\n'
)


def problems(directory: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    path = directory / "dedup.toml"
    path.write_text(text)
    try:
        load_dedup(path, environ or {})
    except ConfigError as error:
        return [problem.removeprefix(f"{path}: ") for problem in error.problems]
    return []


def test_a_small_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "dedup.toml"
    path.write_text(DEDUP + INPUTS + KAFKA)
    file = load_dedup(path, {"GAPCONN_DEDUP_HOLD": "2s"})
    assert file.links == ["a", "b"]
    assert file.dedup.hold == Seconds(2)
    assert (file.group_id, file.state_topic) == ("gapconn-dedup-orders", "gapconn-dedup-orders-state")
    assert file.target_of("b-x") == ("b", "x")
    assert file.target_of("c-x") is None
    assert file.target_of("a-") is None


def test_one_topic_for_each_link(tmp_path: Path) -> None:
    path = tmp_path / "dedup.toml"
    inputs = '[[input]]\nlink = "a"\ntopic = "one"\n[[input]]\nlink = "b"\ntopic = "two"\n[output]\ntopic = "out"\n'
    path.write_text(DEDUP + inputs + KAFKA)
    file = load_dedup(path, {})
    assert [file.target_of(topic) for topic in ("one", "two", "out")] == [("a", "out"), ("b", "out"), None]


def test_datagrams_need_no_cluster(tmp_path: Path) -> None:
    assert problems(tmp_path, DEDUP + 'identity = "hash"\n' + UDP) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (DEDUP + KAFKA, "input: there is no [[input]], and it takes one for each link"),
        (DEDUP + INPUTS, "kafka.bootstrap_servers: missing, allowed: text"),
        (INPUTS + KAFKA, "dedup.name: missing"),
        (DEDUP + '[input]\nlink = "a"\n' + KAFKA, "input: not a list of sections: write it as [[input]]"),
        (DEDUP + INPUTS.replace('"b"', '"a"') + KAFKA, "input: all inputs are of one link"),
        (DEDUP + INPUTS + "tpic = 1\n" + KAFKA, "input[1].tpic: unknown key 'tpic' (did you mean 'topic'?)"),
        (DEDUP + INPUTS.replace('link = "b"', 'link = ""') + KAFKA, "input[1].link: not a name: got ''"),
        (DEDUP + INPUTS.replace('link = "b"\n', "") + KAFKA, "input[1].link: missing"),
        (DEDUP + INPUTS + 'type = "tcp"\n' + KAFKA, "input[1].type: unknown type: got 'tcp', allowed: kafka, udp"),
        (DEDUP + INPUTS.replace("b-", "a-") + KAFKA, "input[1].topic: 'a-{topic}' is the topic of another input too"),
        (
            DEDUP + INPUTS + '[output]\ntopic = "a-all-{topic}"\n' + KAFKA,
            "output.topic: 'a-all-{topic}' would be ",
        ),
        (DEDUP + INPUTS.replace("b-{topic}", "b") + KAFKA, "input[1].topic: 'b' has no {topic}, but output.topic = "),
        (DEDUP + INPUTS.replace("b-{topic}", "b ä") + KAFKA, 'input[1].topic: may have letters, digits, ".", "_"'),
        (DEDUP + 'identity = "field"\n' + INPUTS + KAFKA, "dedup.field: missing, and identity ="),
        (DEDUP + 'field = "id"\n' + INPUTS + KAFKA, 'dedup.field: no use for it while identity is not "field"'),
        (DEDUP + 'identity = "field"\nfield = "a..b"\n' + INPUTS + KAFKA, "dedup.field: has an empty name between"),
        (DEDUP + 'identity = "hash"\nhold = "1s"\n' + INPUTS + KAFKA, 'dedup.hold: only identity = "origin" tells'),
        (DEDUP + 'identity = "orgin"\n' + INPUTS + KAFKA, "dedup.identity: not one of the choices (did you mean"),
        (DEDUP + UDP, 'dedup.identity: is "origin", but datagrams have no headers'),
        (DEDUP + INPUTS + '[output]\ntype = "udp"\nsend_to = "h:1"\n', 'output.type: is "udp", so every input must'),
        (DEDUP + INPUTS + KAFKA + 'client = {"group.id" = "x"}\n', "kafka.client: cannot be set here: group.id has"),
        (DEDUP + INPUTS + KAFKA + '[sink]\ntype = "kafka"\n', "unknown section 'sink'"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(tmp_path, text)), problems(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = '[dedup]\nnme = "x"\n[[input]]\ntopic = 1\n[kafka]\n'
    found = problems(tmp_path, text)
    assert [problem.partition(":")[0] for problem in found] == [
        "dedup.nme", "dedup.name", "kafka.bootstrap_servers", "input[0].link", "input[0].topic",
    ]  # fmt: skip


def test_a_variable_that_means_an_input_is_unknown(tmp_path: Path) -> None:
    found = problems(tmp_path, DEDUP + INPUTS + KAFKA, {"GAPCONN_INPUT_TOPIC": "x"})
    assert len(found) == 1
    assert "GAPCONN_INPUT_TOPIC: unknown variable" in found[0]


@pytest.mark.parametrize("topic", ["a--b", "a-x-b"])
def test_what_stands_for_the_place_of_the_topic(topic: str) -> None:
    place = KafkaInput(topic="a-{topic}-b").place_of(topic)
    assert place == ("x" if "x" in topic else None)


def test_the_command_checks_a_file(tmp_path: Path) -> None:
    path = tmp_path / "dedup.toml"
    path.write_text(DEDUP + INPUTS + KAFKA)
    good = CliRunner().invoke(main, ["dedup", "--check", str(path)])
    assert (good.exit_code, good.stdout) == (0, f"{path}: ok\n")
    path.write_text(DEDUP + INPUTS)
    bad = CliRunner().invoke(main, ["dedup", str(path)])
    assert bad.exit_code == 2
    assert "kafka.bootstrap_servers: missing" in bad.stderr
