"""`gapconn why` where ends do not answer, or something else does; with real ends it is in tests/processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gapconn.cli import main
from gapconn.config import Link
from gapconn.protocol.events import RecordsMissing
from gapconn.store.journal import Changes
from gapconn.store.state import EgressState
from gapconn.units import Address
from gapconn.why.counts import EgressCounts, IngressCounts, JournalTotal, as_json
from tests.processes.ends import free_host, free_port

LINK = Link(name="orders", address=Address("192.0.2.20", 7400))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("pair.toml")
    path.write_text('[link]\nname = "orders"\naddress = "192.0.2.20:7400"\nstate_directory = "state"\n')
    return path


def why(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["why", "pair.toml", *arguments])


@contextmanager
def answering(body: Any) -> Iterator[str]:
    """Something that answers every request with this; where."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer((free_host(), 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield "{}:{}".format(*server.server_address)
        finally:
            server.shutdown()
            thread.join()


def egress(**counts: Any) -> dict[str, Any]:
    losses = as_json(EgressCounts(link_id=LINK.id, **counts))
    return {"role": "egress", "link": "orders", "link_id": LINK.id, "losses": losses}


def ingress(**counts: Any) -> dict[str, Any]:
    losses = as_json(IngressCounts(link_id=LINK.id, **counts))
    return {"role": "ingress", "link": "orders", "link_id": LINK.id, "losses": losses}


@pytest.mark.usefixtures("file")
def test_both_ends() -> None:
    with answering(egress(missed=9, missed_here=4, epoch=3)) as there, answering(ingress(epoch=3)) as here:
        result = why("--egress", there, "--ingress", here)
        facts = json.loads(why("--egress", there, "--ingress", here, "--json").stdout)
    assert result.exit_code == 0
    assert "not seen" not in result.stdout
    assert "9 datagrams are missing:" in result.stdout
    assert facts["datagrams"] == {
        "missed": 9, "unreadable": 0, "egress_kernel": 4, "egress_interface": 0, "ingress_kernel": 0,
        "ingress_interface": 0, "link": 5, "unknown": 0,
    }  # fmt: skip
    assert facts["verdict"] == facts["findings"][0]["what"]
    assert facts["findings"][0]["see"] == "docs/losses.md#link"
    assert facts["unseen"] == []


def test_the_admin_address_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(ingress()) as address:
        monkeypatch.setenv("GAPCONN_ADMIN_LISTEN", address)
        result = why()
    assert result.exit_code == 0
    assert "the ingress lost nothing; what became of the data behind it, it cannot know" in result.stdout
    assert "not seen the egress" in result.stdout
    assert "not seen the gap journal" in result.stdout


@pytest.mark.usefixtures("file")
def test_nobody_answers_and_the_journal_does() -> None:
    host = free_host()
    with EgressState.open(Path("state"), LINK.name, LINK.id) as state:
        event = RecordsMissing(epoch=3, stream="orders", partition=1, first=5, last=9)
        state.journal.happened(event, 1_000)
        state.save(None, Changes.of(state.journal, []))
    result = why("--egress", f"{host}:{free_port(host)}")
    assert result.exit_code == 1
    assert "verdict: neither end answers" in result.stdout
    assert "does not answer: " in result.stdout
    assert "1 of 1 entries open, 0 messages, 0 records, 5 positions missing" in result.stdout


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"role": "monitor"}, "answers, but is no end of a link"),
        (["nothing"], "answers, but is no end of a link"),
        (
            {**egress(), "link_id": 5, "link": "payments"},
            "the egress that answers is of link 'payments', not of 'orders'",
        ),
        (ingress(), "is the ingress, not the egress"),
        ({"role": "egress", "link_id": LINK.id, "version": "0.0.1"}, "version 0.0.1 of gapconn does not say"),
    ],
)
def test_somebody_else_answers(body: Any, words: str) -> None:
    with answering(body) as address:
        result = why("--egress", address)
    assert result.exit_code == 1
    assert words in result.stdout


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(("named", "silent"), [("--egress", "--ingress"), ("--ingress", "--egress")])
def test_an_end_that_was_named_does_not_answer(named: str, silent: str) -> None:
    """What the other one says is not enough: somebody relies on both."""
    host = free_host()
    nobody = f"{host}:{free_port(host)}"
    with answering(egress() if named == "--egress" else ingress()) as address:
        result = why(named, address, silent, nobody)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"verdict: the {silent[2:]} at {nobody} could not be asked; ")
    assert "nothing is missing" not in result.stdout
    assert "does not answer: " in result.stdout


@pytest.mark.usefixtures("file")
def test_an_end_that_was_not_named_need_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin address of the file may be that of the other end's host."""
    host = free_host()
    monkeypatch.setenv("GAPCONN_ADMIN_LISTEN", f"{host}:{free_port(host)}")
    with answering(egress()) as address:
        result = why("--egress", address)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "verdict: nothing is missing")


SECTIONS = {
    "once": '[source]\ntype = "udp"\nlisten = "127.0.0.1:5000"\n',
    "kept": '[source]\ntype = "udp"\nlisten = "127.0.0.1:5000"\n[repeat_buffer]\nmax_bytes = "1 GiB"\n',
    "unreadable": '[source]\ntype = "kafka"\ntopics = ["${NOT_SET_HERE}"]\n',
}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("once", "the source 'udp' cannot be read a second time, and there is no [repeat_buffer]"),
        (
            "kept",
            "do: gapconn gaps export pair.toml at the egress, and gapconn resend pair.toml --gaps LIST at the source\n",
        ),
        ("unreadable", "at the source, if that can be read a second time or has a [repeat_buffer]\n"),
    ],
)
def test_what_to_do_with_the_journal_where_only_the_egress_is_asked(file: Path, source: str, words: str) -> None:
    file.write_text(file.read_text() + SECTIONS[source])
    total = JournalTotal(entries=1, open_entries=1, messages=3)
    with answering(egress(journal={"gap": total})) as address:
        result = why("--egress", address)
    assert words in result.stdout
    assert ("gapconn resend" in result.stdout) is (source != "once")


@pytest.mark.usefixtures("file")
def test_nobody_to_ask() -> None:
    result = why()
    assert result.exit_code == 2
    assert "no section [admin]" in result.stderr
    assert "--egress" in why("--egress", "nowhere").stderr


def test_a_wrong_file(file: Path) -> None:
    file.write_text("[link]\n")
    result = why("--egress", "h:1")
    assert result.exit_code == 2
    assert "link.name" in result.stderr
