"""The monitor as a process: commands, notifications, gap reports, several monitors, and its page in a browser."""

from __future__ import annotations

import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.kafka.cluster import Cluster
from tests.processes.ends import LIMIT_S, POLL_S, End, Ends
from tests.processes.pairs import TOKEN, MonitorProcess, PairProcesses
from tests.processes.test_resend import Topics, all_accepted, configure, gap, lose

GENERATE = 'type = "generate"\nrate = "100 kbit/s"'
DISCARD = 'type = "discard"'
SETTINGS = {
    "interval": "100ms", "deadline": "10s", "failures": 2, "recover_after": "500ms", "interrupted_after": "0",
    "action_timeout": "30s",
}  # fmt: skip


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN)
    return path


@pytest.fixture
def monitors(tmp_path: Path) -> Iterator[MonitorProcess]:
    (tmp_path / "monitor").mkdir()
    monitors = MonitorProcess(tmp_path / "monitor")
    try:
        yield monitors
    finally:
        monitors.close()


@pytest.fixture
def pair(tmp_path: Path, token_file: Path) -> Iterator[PairProcesses]:
    """A pair that needs no broker."""
    pair = PairProcesses.make(tmp_path / "a", "a", GENERATE, DISCARD, token_file)
    try:
        yield pair
    finally:
        pair.ends.close()


async def start(monitors: MonitorProcess, name: str, sections: str, **settings: str | int) -> End:
    """Start a monitor with these sections beside [monitor], and wait until it watches."""
    given = {**SETTINGS, "name": name, "listen": f"{monitors.host}:0", **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
    monitors.file.write_text("\n".join(["[monitor]", *lines, sections, '[log]\nformat = "json"']) + "\n")
    monitor = monitors.start("monitor")
    await monitor.wait_logged("monitor_started")
    return monitor


def watched(pair: PairProcesses, token_file: Path, more: str = "") -> str:
    return (
        f'[pair.{pair.name}]\negress = "http://{pair.egress_admin}"\ningress = "http://{pair.ingress_admin}"\n'
        f'token_file = "{token_file}"\n{more}\n'
    )


async def until_state(monitor: End, state: str) -> dict[str, Any]:
    status = await monitor.until_status(lambda s: s["pairs"][0]["state"] == state, f"the pair is {state}")
    pair: dict[str, Any] = status["pairs"][0]
    return pair


@attrs.define
class Received:
    """What was POSTed, by path."""

    posts: list[tuple[str, Any]] = attrs.field(factory=list)

    def at(self, path: str) -> list[Any]:
        return [body for where, body in self.posts if where == path]

    async def until(self, path: str, condition: Any) -> Any:
        deadline_s = trio.current_time() + LIMIT_S
        while not (found := [body for body in self.at(path) if condition(body)]):
            assert trio.current_time() < deadline_s, f"not posted to {path}; there was {self.posts}"
            await trio.sleep(POLL_S)
        return found[0]


@contextmanager
def receiving() -> Iterator[tuple[str, Received]]:
    """A server that takes every POST; its URL, and what came."""
    received = Received()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            received.posts.append((self.path, body))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", received
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.timeout(400)
async def test_a_command_takes_the_ingress_out_and_everybody_is_told(
    pair: PairProcesses, monitors: MonitorProcess, token_file: Path, tmp_path: Path
) -> None:
    done, state_file = tmp_path / "done", tmp_path / "state.json"
    commands = (
        f'action = "command"\npause_command = ["sh", "-c", "echo out >> {done}"]\n'
        f'resume_command = ["sh", "-c", "echo in >> {done}"]'
    )
    with receiving() as (url, received):
        sections = watched(pair, token_file, commands)
        sections += f'[notify]\nwebhook = "{url}/hook"\nalertmanager = "{url}"'
        egress = await pair.egress()
        monitor = await start(monitors, "one", sections, state_file=str(state_file))
        await until_state(monitor, "working")
        await egress.kill()
        await monitor.wait_logged("ingress_paused")
        assert done.read_text() == "out\n"
        told = await received.until("/hook", lambda body: body["event"] == "egress_failed")
        assert (told["monitor"], told["pair"], told["level"]) == ("one", "a", "error")
        [alert] = await received.until(
            "/api/v2/alerts", lambda body: body[0]["labels"]["alertname"] == "GapconnEgressDown"
        )
        assert alert["endsAt"] > alert["startsAt"]

        # Whoever comes after a monitor that is gone lets work what that one has stopped.
        await monitor.kill()
        monitor = await start(monitors, "one", sections, state_file=str(state_file))
        await until_state(monitor, "out")
        assert done.read_text() == "out\n", "not done twice"
        await pair.egress()
        await monitor.wait_logged("ingress_resumed")
        assert done.read_text() == "out\nin\n"
        await until_state(monitor, "working")


@pytest.mark.timeout(400)
async def test_two_monitors_do_not_fight_and_one_that_is_gone_does_not_hold_for_ever(
    pair: PairProcesses, monitors: MonitorProcess, token_file: Path
) -> None:
    egress, ingress = await pair.egress(), pair.start("ingress")
    await ingress.wait_logged("source_started")
    one = await start(monitors, "one", watched(pair, token_file), lease="5s")
    two = await start(monitors, "two", watched(pair, token_file), lease="5s")
    for monitor in (one, two):
        await until_state(monitor, "working")
    await egress.kill()
    holds = (
        await ingress.until_status(lambda s: len(s["paused"]["holds"]) == 2 and s["paused"]["at_rest"], "both hold it")
    )["paused"]["holds"]
    assert {hold["owner"] for hold in holds} == {"monitor:one", "monitor:two"}
    await one.kill()
    await pair.egress()
    await ingress.wait_logged("source_started", 2)
    assert [each["released"] for each in ingress.logged("resumed")] == [["monitor:two"], ["monitor:one"]]
    assert len(ingress.logged("source_paused")) == 1, "nobody held it again"


@pytest.mark.timeout(400)
async def test_a_pair_that_was_out_of_sight_is_not_disturbed_when_it_is_seen_again(
    pair: PairProcesses, monitors: MonitorProcess, token_file: Path
) -> None:
    """As when a monitor is started before the pairs, or was cut off for a while."""
    monitor = await start(monitors, "one", watched(pair, token_file), recover_after="3s")
    await until_state(monitor, "out")
    await pair.egress()
    await until_state(monitor, "recovering")
    ingress = pair.start("ingress")
    await ingress.wait_logged("source_started")
    await until_state(monitor, "working")
    assert not ingress.logged("pausing")
    assert (await ingress.status())["paused"]["holds"] == []


@pytest.mark.timeout(400)
async def test_what_is_no_pair_is_left_alone(pair: PairProcesses, monitors: MonitorProcess, token_file: Path) -> None:
    """The addresses were mixed up: the ingress stands where the egress should."""
    ingress = pair.start("ingress")
    await ingress.wait_logged("source_started")
    sections = watched(pair, token_file).replace(str(pair.egress_admin), "EGRESS")
    sections = sections.replace(str(pair.ingress_admin), str(pair.egress_admin))
    sections = sections.replace("EGRESS", str(pair.ingress_admin))
    monitor = await start(monitors, "one", sections)
    trouble = await monitor.wait_logged("monitor_in_trouble")
    assert "the egress of this pair is an ingress" in trouble["what"]
    assert not (await monitor.get("/health")).is_success
    assert not (await ingress.status())["paused"]["holds"]


@pytest.mark.kafka
@pytest.mark.timeout(600)
@pytest.mark.req("GC-RPR-5")
async def test_what_the_gap_swallowed_is_sent_again_without_anybody_carrying_a_list(
    ends: Ends, kafka: Cluster, monitors: MonitorProcess, token_file: Path
) -> None:
    topics = await Topics.make(kafka)
    ends.environ["GAPCONN_ADMIN_TOKEN_FILE"] = str(token_file)
    async with gap(ends) as (listen, switch):
        configure(ends, topics, listen)
        egress, ingress = await ends.egress(), await ends.ingress()
        await topics.send(20)
        await all_accepted(egress, 40)
        sections = (
            f'[pair.orders]\negress = "http://{await egress.admin()}"\ningress = "http://{await ingress.admin()}"\n'
            f'token_file = "{token_file}"\ngap_reports = true\ngap_interval = "100ms"'
        )
        monitor = await start(monitors, "one", sections)
        await lose(ends, topics, switch, ingress, 30)
        await monitor.wait_logged("gaps_reported")
        await egress.until_status(
            lambda s: s["journal"]["records_repaired"] == 60 and not s["journal"]["open_entries"], "all was repaired"
        )
        assert len(await topics.found()) == 2 * topics.sent
        assert (await monitor.status())["pairs"][0]["state"] == "working"
        assert await ingress.stop() == 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.timeout(400)
async def test_the_page_in_a_browser(
    pair: PairProcesses, monitors: MonitorProcess, token_file: Path, tmp_path: Path
) -> None:
    """One pair works; the egress of the other is dead, and its ingress is held."""
    other = PairProcesses.make(tmp_path / "b", "b", GENERATE, DISCARD, token_file)
    try:
        await pair.egress()
        for ingress in (pair.start("ingress"), other.start("ingress")):
            await ingress.wait_logged("source_started")
        monitor = await start(monitors, "one", watched(pair, token_file) + watched(other, token_file))
        states = ["working", "out"]
        await monitor.until_status(
            lambda s: [p["state"] for p in s["pairs"]] == states and s["pairs"][1]["ingress"]["at_rest"], "b is out"
        )
        picture = Path(os.environ.get("GAPCONN_TEST_SCREENSHOT", str(tmp_path / "monitor.png")))
        page, drawn = await browse(f"http://{await monitor.admin()}/", tmp_path, picture)
    finally:
        other.ends.close()
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert re.search(r'<p id="headline">1 of 2 pairs work, out: b</p>', page)
    rows = dict(re.findall(r'<tr id="pair-(\w+)">(.*?)</tr>', page, re.DOTALL))
    assert set(rows) == {"a", "b"}
    for words in ("working", "sending", "receiving"):
        assert words in rows["a"]
        assert words not in rows["b"]
    for words in ("out", "paused", "held by monitor:one", "no answer"):
        assert words in rows["b"]
    assert "the egress failed" in text
    assert drawn.startswith(b"\x89PNG")


async def browse(url: str, directory: Path, picture: Path) -> tuple[str, bytes]:
    """The page as the browser has it after it was drawn, and the picture of it that is written to `picture`."""
    common = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={directory / 'browser'}", "--window-size=1100,640", "--hide-scrollbars",
        "--no-proxy-server", "--force-color-profile=srgb",
    ]  # fmt: skip

    def run(*what: str) -> str:
        return subprocess.run([*common, *what, url], capture_output=True, text=True, check=True, timeout=200).stdout

    await trio.to_thread.run_sync(run, f"--screenshot={picture}")
    page = await trio.to_thread.run_sync(run, "--dump-dom")
    return page, await trio.Path(picture).read_bytes()
