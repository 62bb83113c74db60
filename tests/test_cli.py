"""The command line: what goes where, exit codes, and how failures are told. The services are replaced, except once."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest
import structlog
import trio
from click.testing import CliRunner, Result

from gapconn import __version__
from gapconn.cli import main
from gapconn.config import Pair
from gapconn.errors import ConfigError, LinkError, SinkError

PAIR = """
[link]
name = "orders"
address = "127.0.0.1:7400"
[source]
type = "generate"
[sink]
type = "discard"
[log]
format = "json"
"""


@pytest.fixture(autouse=True)
def _restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory and environment, and logging as it was before, afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GAPCONN_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="gapconn")


def serve(monkeypatch: pytest.MonkeyPatch, end: str, error: BaseException | None = None) -> list[Pair]:
    """Replaces the service of an end by one that raises `error`, or ends cleanly; the pairs that it was given."""
    pairs: list[Pair] = []

    async def service(pair: Pair) -> None:
        pairs.append(pair)
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error

    monkeypatch.setattr(f"gapconn.service.serve_{end}", service)
    Path("pair.toml").write_text(PAIR)
    return pairs


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"gapconn {__version__}\n")


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="gapconn")
    assert script.load() is main


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["ingress"],
        ["egress"],
        ["pause"],
        ["resume"],
        ["monitor"],
        ["check"],
        ["why"],
        ["demo"],
        ["bench"],
        ["bench", "ingress"],
        ["bench", "egress"],
        ["bench", "local"],
    ],
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example(command: list[str], flag: str) -> None:
    result = run(*command, flag)
    assert result.exit_code == 0
    assert f"  {' '.join(['gapconn', *command])}" in result.stdout.partition("Example:")[2]


@pytest.mark.parametrize(
    "arguments", [["sing"], ["ingress"], ["check"], ["ingress", "a", "b"], ["demo", "--seconds", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: gapconn" in result.stderr


def test_what_is_heavy_is_loaded_late() -> None:
    program = (
        "import sys, gapconn.cli\n"
        "heavy = {'trio', 'attrs', 'cattrs', 'numpy', 'confluent_kafka', 'structlog', 'msgspec', 'starlette'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


# Services


@pytest.mark.parametrize(("end", "other"), [("ingress", "sink"), ("egress", "source")])
def test_an_end_is_given_its_pair_and_ends_cleanly(monkeypatch: pytest.MonkeyPatch, end: str, other: str) -> None:
    pairs = serve(monkeypatch, end)
    monkeypatch.setenv("GAPCONN_LINK_MTU_BYTES", "9000")
    result = run(end, "pair.toml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    (pair,) = pairs
    assert (pair.link.name, pair.link.mtu_bytes, getattr(pair, other)) == ("orders", 9000, None)


def test_an_end_with_a_wrong_configuration_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = serve(monkeypatch, "ingress")
    Path("pair.toml").write_text("[link]\nname = 'a'\naddress = 'x'\nmtu = 1\n")
    result = run("ingress", "pair.toml")
    assert (result.exit_code, result.stdout, pairs) == (2, "", [])
    assert result.stderr.splitlines() == [
        "error: pair.toml: link.mtu: unknown key 'mtu' (did you mean 'mtu_bytes'?)",
        "error: pair.toml: link.address: no port: got 'x', allowed: an address such as "
        '"192.0.2.1:7400", "host:7400", "[2001:db8::1]:7400"',
        "error: pair.toml: source: the section [source] is missing, and the ingress needs it",
    ]
    missing = run("egress", "none.toml")
    assert (missing.exit_code, missing.stderr) == (2, "error: none.toml: there is no such file\n")


def test_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = LinkError("cannot listen on 127.0.0.1:7400: the address is in use; set link.bind")
    serve(monkeypatch, "egress", ExceptionGroup("nursery", [ExceptionGroup("inner", [error, error])]))
    result = run("egress", "pair.toml")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    event = json.loads(line)
    assert (event["level"], event["event"], event["end"]) == ("error", "stopped_by_failure", "egress")
    assert event["reason"] == str(error)
    assert "exception" not in event


def test_two_failures_are_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "egress", ExceptionGroup("nursery", [LinkError("one"), SinkError("two")]))
    result = run("egress", "pair.toml")
    assert [json.loads(line)["reason"] for line in result.stderr.splitlines()] == ["one", "two"]
    assert result.exit_code == 1


def test_a_bug_is_told_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "ingress", ExceptionGroup("nursery", [LinkError("consequence"), ZeroDivisionError("the bug")]))
    result = run("ingress", "pair.toml")
    assert result.exit_code == 1
    failure, bug = [json.loads(line) for line in result.stderr.splitlines()]
    assert failure["reason"] == "consequence"
    assert bug["event"] == "stopped_by_bug"
    assert "ZeroDivisionError: the bug" in bug["exception"]


def test_a_configuration_that_a_plugin_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "ingress", ExceptionGroup("nursery", [ConfigError(["source.directory: does not exist"])]))
    result = run("ingress", "pair.toml")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["reason"] == "source.directory: does not exist"


def test_an_interrupt_that_no_service_took(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "ingress", BaseExceptionGroup("nursery", [KeyboardInterrupt()]))
    result = run("ingress", "pair.toml")
    assert (result.exit_code, json.loads(result.stderr)["event"]) == (1, "stopped_by_interrupt")


# Check


def test_check_says_what_a_pair_does() -> None:
    Path("pair.toml").write_text(PAIR)
    result = run("check", "pair.toml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "pair.toml: ok"
    assert "  source  generate" in result.stdout.splitlines()


def test_check_refuses() -> None:
    Path("a.toml").write_text(PAIR)
    Path("b.toml").write_text(PAIR.replace("orders", "other"))
    result = run("check", "a.toml", "b.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: a.toml and b.toml: both send to 127.0.0.1:7400: two ingresses on one egress"
    )


def test_check_as_json() -> None:
    Path("a.toml").write_text(PAIR)
    Path("b.toml").write_text("[link]\nname = 'b'\n")
    good, bad = run("check", "--json", "a.toml"), run("check", "--json", "a.toml", "b.toml")
    assert (good.exit_code, bad.exit_code) == (0, 2)
    report = json.loads(good.stdout)
    assert (report["ok"], report["problems"]) == (True, [])
    assert (report["pairs"][0]["file"], report["pairs"][0]["link"]["name"]) == ("a.toml", "orders")
    assert json.loads(bad.stdout)["problems"][0].startswith("b.toml: link.address: missing")


def test_check_for_one_end_and_for_separate_hosts() -> None:
    Path("a.toml").write_text(PAIR + "[admin]\n")
    Path("b.toml").write_text(PAIR.replace('"orders"', '"b"').replace("7400", "7401") + "[admin]\n")
    Path("c.toml").write_text("[link]\nname='c'\naddress='h:1'\n[source]\ntype='elsewhere'\n[sink]\ntype='discard'\n")
    assert "--separate-hosts" in run("check", "a.toml", "b.toml").stderr
    assert run("check", "--separate-hosts", "a.toml", "b.toml").exit_code == 0
    assert run("check", "c.toml").exit_code == 2
    assert run("check", "--role", "egress", "c.toml").exit_code == 0


# Demo


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str | None, float]] = []

    def run_demo(*, kafka: str | None, seconds: float) -> int:
        calls.append((kafka, seconds))
        if kafka == "away:1":
            raise SinkError("no broker answers at away:1; start one")
        return 1 if kafka else 0

    module = ModuleType("gapconn.demo")
    module.run_demo = run_demo  # type: ignore[attr-defined]  # that is how a module is made
    monkeypatch.setitem(sys.modules, "gapconn.demo", module)
    assert run("demo").exit_code == 0
    assert run("demo", "--kafka", "k:9092", "--seconds", "7").exit_code == 1
    assert calls[1] == ("k:9092", 7.0)
    failed = run("demo", "--kafka", "away:1")
    assert (failed.exit_code, failed.stderr) == (1, "gapconn demo: no broker answers at away:1; start one\n")


# The whole, once


def test_lines_cross_between_two_processes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "pair.toml").write_text(
        f"""
        [link]
        name = "pipe"
        address = "127.0.0.1:{port}"
        heartbeat_interval = "50ms"
        state_directory = "{tmp_path}"
        [source]
        type = "stdin"
        [sink]
        type = "stdout"
        """
    )
    command = [sys.executable, "-m", "gapconn"]
    egress = subprocess.Popen(
        [*command, "egress", "pair.toml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert egress.stdout is not None
        assert egress.stderr is not None
        assert json.loads(egress.stderr.readline())["event"] == "egress_started"
        ingress = subprocess.run(
            [*command, "ingress", "pair.toml"],
            input="one\ntwo\n",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (ingress.returncode, ingress.stdout) == (0, "")
        assert [egress.stdout.readline(), egress.stdout.readline()] == ["one\n", "two\n"]
        egress.send_signal(signal.SIGTERM)
        rest, _ = egress.communicate(timeout=30)
        assert (egress.returncode, rest) == (0, "")
    finally:
        egress.kill()
        egress.communicate()


@pytest.mark.parametrize("command", ["pause", "resume"])
@pytest.mark.parametrize(
    ("admin", "code", "words"),
    [
        ("", 2, "admin.token_file: missing"),
        ('listen = "127.0.0.1:0"\ntoken_file = "token"', 2, "port 0"),
        ('token_file = "nowhere"', 2, "no such token file"),
        ('listen = "127.0.0.1:1"\ntoken_file = "token"', 1, "http://127.0.0.1:1/"),
    ],
)
def test_an_ingress_that_cannot_be_controlled(command: str, admin: str, code: int, words: str) -> None:
    token = Path("token")
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef")
    Path("pair.toml").write_text(PAIR + f"[admin]\n{admin}\n")
    result = CliRunner().invoke(main, [command, "pair.toml"])
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_the_file_of_a_monitor_is_checked() -> None:
    file = Path("monitor.toml")
    file.write_text('[pair.a]\negress = "http://e:1"\naction = "webhook"\naction_url = "http://w"\n')
    result = CliRunner().invoke(main, ["monitor", "--check", "monitor.toml"])
    assert (result.exit_code, result.stdout.splitlines()[1].strip()) == (0, "a: ingress not watched, egress http://e:1")
    file.write_text("[monitor]\nintervall = 1\n")
    result = CliRunner().invoke(main, ["monitor", "monitor.toml"])
    assert result.exit_code == 2
    assert "intervall" in result.stderr
    assert "no pair to watch" in result.stderr


KINDS = {
    "pair": ('[link]\nname = "a"\naddress = "h:1"\n', "a pair", "gapconn check"),
    "monitor": ('[pair.a]\negress = "http://e:1"\n', "a monitor", "gapconn monitor --check"),
    "watch": ('[monitor]\nname = "m"\n', "a monitor", "gapconn monitor --check"),
    "dedup": ('[dedup]\nname = "d"\n', "a deduplicator", "gapconn dedup --check"),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("check", "monitor"), ("check", "watch"), ("check", "dedup"), ("ingress", "monitor"), ("why", "dedup"),
        ("dedup --check", "pair"), ("dedup", "monitor"), ("monitor --check", "pair"), ("monitor --check", "dedup"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_called_what_it_is(command: str, kind: str) -> None:
    text, words, checked_by = KINDS[kind]
    Path("some.toml").write_text(text)
    result = CliRunner().invoke(main, [*command.split(), "some.toml"])
    assert result.exit_code == 2
    assert result.stderr == f"error: some.toml: this is the configuration of {words}: check it by {checked_by}\n"


@pytest.mark.parametrize(
    ("command", "kind"), [("check", "pair"), ("monitor --check", "watch"), ("dedup --check", "dedup")]
)
def test_a_file_with_a_section_of_another_kind_is_read_as_what_it_is(command: str, kind: str) -> None:
    others = "".join(f"[{section}]\n" for section in ("link", "monitor", "dedup") if section not in KINDS[kind][0])
    Path("some.toml").write_text(KINDS[kind][0] + others)
    result = CliRunner().invoke(main, [*command.split(), "some.toml"])
    assert result.exit_code == 2
    assert result.stderr.count("unknown section") == 2
