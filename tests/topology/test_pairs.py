"""Directories of pair files, and what two pairs must not have in common at Kafka."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gapconn.cli import main
from gapconn.config import Role
from gapconn.topology.check import check_all
from tests.topology.pairs import kafka_sink, kafka_source, pair

MEMBER = 'client = { "group.instance.id" = "one" }'


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory `links` in the current directory."""
    monkeypatch.chdir(tmp_path)
    directory = Path("links")
    directory.mkdir()
    return directory


def test_a_directory_of_pairs_that_go_together(links: Path) -> None:
    for name in "abc":
        (links / f"{name}.toml").write_text(pair(name, f"h-{name}:7400", source=kafka_source(), sink=kafka_sink()))
    (links / "notes.txt").write_text("not TOML")
    report = check_all([links], {})
    assert (report.problems, report.warnings) == ([], [])
    assert [path.name for path, _ in report.pairs] == ["a.toml", "b.toml", "c.toml"]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (pair("a", "x:1"), pair("a", "y:1"), "both are link 'a', to x:1 and to y:1: one ingress for two egresses"),
        (pair("a", "x:1", "id = 5"), pair("b", "y:1", "id = 5"), "links 'a' and 'b' have the same id 5"),
        (pair("a", "x:1"), pair("b", "x:1"), "both send to x:1: two ingresses on one egress"),
        (
            pair("a", "x:1", 'bind = "10.0.0.1:7400"'),
            pair("b", "x:2", 'bind = "0.0.0.0:7400"'),
            "both egresses would listen on port 7400 of one host",
        ),
        (
            pair("a", "x:1", source=kafka_source(client=MEMBER)),
            pair("b", "y:1", source=kafka_source(client=MEMBER, brokers="other:1, K:9092")),
            "source, sink: both ingresses are the member 'one' of consumer group 'g'",
        ),
    ],
)
def test_pairs_that_do_not_go_together(links: Path, a: str, b: str, words: str) -> None:
    (links / "a.toml").write_text(a)
    (links / "b.toml").write_text(b)
    problems = check_all([links], {}).problems
    assert len(problems) == 1, problems
    assert problems[0].startswith("links/a.toml and links/b.toml: ")
    assert words in problems[0]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (kafka_source(client=MEMBER), kafka_source(client=MEMBER.replace("one", "two"))),
        (kafka_source(client=MEMBER), kafka_source(group="h", client=MEMBER)),
        (kafka_source(client=MEMBER), kafka_source(client=MEMBER, brokers="elsewhere:9092")),
    ],
)
def test_members_that_kafka_tells_apart(links: Path, a: str, b: str) -> None:
    (links / "a.toml").write_text(pair("a", "x:1", source=a, sink=kafka_sink(topic="one-{topic}")))
    (links / "b.toml").write_text(pair("b", "y:1", source=b, sink=kafka_sink(topic="two-{topic}")))
    report = check_all([links], {})
    assert (report.problems, report.warnings) == ([], [])


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (
            pair("a", "x:1", source=kafka_source(topics="orders"), sink=kafka_sink()),
            pair("b", "y:1", source=kafka_source(topics="payments"), sink=kafka_sink()),
            "both are in consumer group 'g', and read different topics",
        ),
        (
            pair("a", "x:1", source=kafka_source(group="one"), sink=kafka_sink()),
            pair("b", "y:1", source=kafka_source(group="two"), sink=kafka_sink()),
            "both carry topic orders into the same target topic, in two consumer groups",
        ),
    ],
)
def test_what_is_only_doubtful(links: Path, a: str, b: str, words: str) -> None:
    (links / "a.toml").write_text(a)
    (links / "b.toml").write_text(b)
    report = check_all([links], {})
    assert report.problems == []
    (warning,) = report.warnings
    assert words in warning


MONITOR = '[pair.a]\negress = "http://e:1"\ningress = "http://i:1"\ntoken_file = "/not/on/this/host"\n'
DEDUP = (
    '[dedup]\nname = "orders"\n[kafka]\nbootstrap_servers = "k:9092"\n'
    '[[input]]\nlink = "a"\ntopic = "a-{topic}"\n[[input]]\nlink = "b"\ntopic = "b-{topic}"\n'
)


def test_what_else_is_in_a_directory_is_checked_or_named(links: Path) -> None:
    (links / "a.toml").write_text(pair("a", "h-a:7400", source=kafka_source(), sink=kafka_sink()))
    (links / "dedup.toml").write_text(DEDUP)
    (links / "monitor.toml").write_text(MONITOR)
    (links / "notes.toml").write_text('title = "notes"\n')
    environ = {"GAPCONN_LINK_RATE": "1 Gbit/s"}
    report = check_all([links], environ)
    assert report.problems == []
    assert report.others == ["links/dedup.toml (of a deduplicator)", "links/monitor.toml (of a monitor)"]
    assert report.left_out == ["links/notes.toml: not that of a pair, as it has no section [link]"]
    (links / "dedup.toml").write_text(DEDUP.replace("topic =", "tpic =", 1))
    (links / "monitor.toml").write_text("[monitor]\n")
    problems = check_all([links], environ).problems
    assert [problem.partition(": ")[0] for problem in problems] == [
        "links/dedup.toml", "links/dedup.toml", "links/monitor.toml",
    ]  # fmt: skip
    assert "no pair to watch" in problems[-1]


def test_a_file_that_no_end_reads_is_left_out_where_one_is_asked_for(links: Path) -> None:
    (links / "a.toml").write_text(pair("a", "h-a:7400", source=kafka_source(), sink=kafka_sink()))
    (links / "dedup.toml").write_text("[dedup]\n")
    report = check_all([links], {}, role=Role.INGRESS)
    assert report.problems == []
    assert report.left_out == [
        "links/dedup.toml: that of a deduplicator, which no ingress reads: gapconn dedup --check"
    ]


def test_a_directory_without_pairs(links: Path) -> None:
    (links / "notes.toml").write_text("[notes]\n")
    assert check_all([links], {}).problems == ["links: no pair file: no *.toml with a section [link]"]
    (links / "broken.toml").write_text("[link\n")
    (problem,) = check_all([links], {}).problems
    assert problem.startswith("links/broken.toml: ")


def test_the_command(links: Path) -> None:
    (links / "a.toml").write_text(pair("a", "x:1", source=kafka_source(group="one"), sink=kafka_sink()))
    (links / "b.toml").write_text(pair("b", "y:1", source=kafka_source(group="two"), sink=kafka_sink()))
    result = CliRunner().invoke(main, ["check", "links"])
    assert result.exit_code == 0, "a warning is no failure"
    assert "warning: links/a.toml and links/b.toml: " in result.stderr
    assert "links/a.toml: ok" in result.stdout
    facts = json.loads(CliRunner().invoke(main, ["check", "links", "--json"]).stdout)
    assert (facts["ok"], len(facts["warnings"]), facts["problems"], facts["ends"]) == (True, 1, [], [])
    assert (facts["others"], facts["left_out"]) == ([], [])
    (links / "monitor.toml").write_text(MONITOR)
    (links / "notes.toml").write_text("")
    result = CliRunner().invoke(main, ["check", "links"])
    assert result.exit_code == 0
    assert "links/monitor.toml (of a monitor): ok" in result.stdout
    assert "left out: links/notes.toml: " in result.stderr
    (links / "monitor.toml").unlink()
    Path("compose.yml").write_text(
        "services: {e: {command: [egress, /a.toml], volumes: ['./links/a.toml:/a.toml'], scale: 2}}"
    )
    result = CliRunner().invoke(main, ["check", "links", "compose.yml"])
    assert result.exit_code == 2
    assert "error: compose.yml: services.e.scale: 2 instances of the egress of link 'a'" in result.stderr
    assert "ok" not in result.stdout
