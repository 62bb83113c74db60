"""The Docker engine and Compose, as an operator uses them: by their commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "compose"
ENVIRON = {**os.environ, "MONITOR_DEADLINE": "3s"}
"""The machine of a test may be too busy for answers within a second; how fast the monitor is, other tests say."""
IMAGE = "gapconn:local"
LIMIT_S = 300.0
"""How long anything is waited for: a stack is a dozen processes on a machine that may have two cores."""
POLL_S = 0.5


def run(*command: str, stdin: str | None = None, check: bool = True, limit_s: float = LIMIT_S) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=limit_s, check=False, cwd=ROOT, env=ENVIRON
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


@cache
def docker() -> str:
    """The client. A distribution's own comes with the engine and knows where it listens."""
    return shutil.which("docker", path="/usr/bin:/usr/local/bin") or shutil.which("docker") or "docker"


@cache
def compose() -> tuple[str, ...]:
    """Compose in version 2 where it is installed, else the older program."""
    if subprocess.run([docker(), "compose", "version"], capture_output=True, check=False).returncode == 0:
        return docker(), "compose"
    return (shutil.which("docker-compose") or "docker-compose",)


def engine_trouble() -> str | None:
    """Why no stack can run here; None if one can."""
    try:
        run(docker(), "info", limit_s=30)
    except (OSError, AssertionError, subprocess.TimeoutExpired) as error:
        return f"no Docker engine answers: {error}"
    try:
        run(*compose(), "version", limit_s=60)
    except (OSError, AssertionError, subprocess.TimeoutExpired) as error:
        return f"no Compose: {error}"
    if not run(docker(), "images", "-q", IMAGE):
        return f"there is no image {IMAGE}: `make image` builds it"
    return None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait until `condition` gives something that is true; what it gave."""
    deadline_s = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(POLL_S)
    return found


@attrs.define
class Stack:
    """One stack of compose/, and its account of every record.

    Attributes:
        name: Of its directory.
        figures: What was measured, by what it is.
    """

    name: str
    figures: dict[str, float] = attrs.field(factory=dict)

    @property
    def project(self) -> str:
        return f"gapconn-{self.name}"

    def compose(self, *arguments: str, check: bool = True) -> str:
        directory = str(COMPOSE / self.name)
        return run(
            *compose(), "--project-directory", directory, "-f", f"{directory}/docker-compose.yml",
            "--env-file", f"{directory}/.env", *arguments, check=check, limit_s=2 * LIMIT_S,
        )  # fmt: skip

    def container(self, service: str) -> str:
        """The id of its container, running or not."""
        labels = f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={service}"
        found = run(docker(), "ps", "-aq", "--filter", labels[0], "--filter", labels[1]).split()
        assert found, f"there is no container of {service}"
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(run(docker(), "inspect", self.container(service)))[0]
        return described

    def logs(self, service: str) -> list[str]:
        """What it wrote, standard error too."""
        done = subprocess.run(
            [docker(), "logs", self.container(service)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    def execute(self, service: str, *command: str, stdin: str | None = None, check: bool = True) -> str:
        return run(docker(), "exec", "-i", self.container(service), *command, stdin=stdin, check=check)

    def page(self, service: str, path: str) -> tuple[int, Any]:
        """Status code and JSON of a page of its admin endpoint, asked from inside; 0 and None if it does not answer."""
        code, _, body = self.execute(service, "python", "-c", _GET, path, check=False).partition("\n")
        return (int(code), json.loads(body)) if code else (0, None)

    # -- Breaking it -----------------------------------------------------------------------------------------

    def kill(self, service: str) -> int:
        """SIGKILL by hand, after which the engine does not start it again by itself. Returns when, in ms."""
        killed_ms = now_ms()
        run(docker(), "kill", self.container(service))
        return killed_ms

    def crash(self, service: str) -> int:
        """SIGKILL to its process, as when it dies by itself. Returns when, in ms."""
        pid = int(self.inspect(service)["State"]["Pid"])
        crashed_ms = now_ms()
        run("kill", "-9", str(pid))
        return crashed_ms

    def start(self, service: str) -> int:
        """Start it again. Returns when, in ms."""
        started_ms = now_ms()
        run(docker(), "start", self.container(service))
        return started_ms

    def restart(self, service: str) -> int:
        """Stop it in order and start it again. Returns when, in ms."""
        began_ms = now_ms()
        run(docker(), "restart", self.container(service))
        return began_ms

    def cut(self, gap: str) -> int:
        """Cut the fibre, or join it again. Returns when, in ms."""
        run(docker(), "kill", "--signal", "USR1", self.container(gap))
        return now_ms()

    @contextmanager
    def paused(self, service: str) -> Iterator[None]:
        """Frozen, with its sockets open."""
        run(docker(), "pause", self.container(service))
        try:
            yield
        finally:
            run(docker(), "unpause", self.container(service))

    # -- The account -----------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Any]:
        """What has arrived, as of a second ago."""
        lines = run(docker(), "logs", "--tail", "1", self.container("ledger")).splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}

    def until_flowing(self, since_ms: int = 0, partitions: Iterable[str] = ()) -> None:
        """Wait until records have arrived after `since_ms`, in all these partitions (else in every one)."""

        def flowing() -> bool:
            places = self.ledger().get("partitions", {})
            wanted = list(partitions) or list(places)
            return bool(wanted) and all(places[place]["last_ms"] > since_ms for place in wanted)

        until(flowing, f"data flows in {self.name}")

    def note_outage(self, what: str, since_ms: int, partitions: Iterable[str] = ()) -> float:
        """Wait until data flows again everywhere, and note how long after `since_ms` it did, in seconds.

        That is the end of the last silence that had begun by now; 0 if there was none.
        """
        begun_by_ms = max(now_ms(), since_ms + 1000)
        self.until_flowing(since_ms + 1000, partitions)
        places = self.ledger()["partitions"]
        ends = [
            end - since_ms
            for place in list(partitions) or list(places)
            for begin, end in places[place]["silences"]
            if begin < begun_by_ms and end > since_ms
        ]
        self.figures[what] = round(max(ends, default=0) / 1000, 1)
        return self.figures[what]

    def end_load(self) -> dict[str, int]:
        """Produce no more; how many records each partition has got."""
        run(docker(), "stop", "--time", "120", self.container("load"))
        said = json.loads(self.logs("load")[-1])
        assert said["ended"]
        assert said["in_hand"] == 0
        places: dict[str, int] = said["places"]
        return places

    def arrived(self) -> dict[str, int]:
        """How many different records have arrived, by partition."""
        places = self.ledger().get("partitions", {})
        return {place: sum(facts["arrived"].values()) for place, facts in places.items()}

    def settle(self) -> dict[str, Any]:
        """End the load, wait until all of it is there and nothing is missing; the account."""
        produced = self.end_load()
        try:
            until(lambda: self.arrived() == produced, "every record has arrived")
        except AssertionError as error:
            raise AssertionError(f"{error}: produced {produced}, arrived {self.arrived()}") from None
        account = self.ledger()
        assert account["missing"] == 0
        self.figures["records"] = sum(produced.values())
        return account

    def repair(self, egress: str, ingress: str, file: str = "/etc/gapconn/pair.toml") -> None:
        """Carry the list of what is missing to the source side, as an operator does with a memory stick, until all is
        there."""
        resent = ""

        def closed() -> bool:
            nonlocal resent
            if not self.open_gaps(egress):
                return True
            gaps = self.execute(egress, "gapconn", "gaps", "export", "--format", "json", file)
            if gaps != resent:
                self.execute(ingress, "gapconn", "resend", "--gaps", "-", file, stdin=gaps)
                resent = gaps
            return False

        until(closed, f"the journal of {egress} is closed")

    def open_gaps(self, egress: str) -> int:
        entries: int = self.page(egress, "/status")[1]["journal"]["open_entries"]
        return entries

    def until_delivering(self, egress: str) -> None:
        """Wait until this egress is ready, and its target accepts from it."""
        until(lambda: self.page(egress, "/ready")[0] == 200, f"{egress} is ready")
        before = self.page(egress, "/status")[1]["accepted_messages"]
        until(lambda: self.page(egress, "/status")[1]["accepted_messages"] > before, f"{egress} delivers")


_GET = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 9464, timeout=60)
connection.request("GET", sys.argv[1])
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode())
"""


@contextmanager
def running(name: str) -> Iterator[Stack]:
    """A stack from a clean state, with data flowing; gone afterwards. Its logs are printed, for when a test fails."""
    stack = Stack(name)
    stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")
    begun_ms = now_ms()
    try:
        stack.compose("up", "-d")
        stack.until_flowing()
        stack.figures["start"] = round((now_ms() - begun_ms) / 1000, 1)
        yield stack
    finally:
        print(stack.compose("ps", check=False))  # noqa: T201
        print(stack.compose("logs", "--no-color", "--tail", "60", check=False))  # noqa: T201
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "1", check=False)
