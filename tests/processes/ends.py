"""Both ends of a link as real processes, on an address of their own, watched through their logs and their pages."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from gapconn.config import Link
from gapconn.store.state import IngressState
from gapconn.units import Address, parse_address

LIMIT_S = 60.0
"""How long anything is waited for: far more than it takes, also where the machine is slow."""

POLL_S = 0.05

_AS_SERVICE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def _toml(value: str | int | list[str] | Mapping[str, str]) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def free_host() -> str:
    """A loopback address that nobody else uses, so that a free port stays free."""
    return "127." + ".".join(str(random.randrange(1, 255)) for _ in range(3))


def free_port(host: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    with socket.socket(type=kind) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


@attrs.define(eq=False)
class End:
    """One running process of gapconn."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    @property
    def lines(self) -> list[str]:
        """Its standard error; a last line that is not whole yet is left out."""
        return self.log_file.read_text().split("\n")[:-1]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry["event"] == event]

    def total(self, event: str, **facts: object) -> int:
        """The sum of the counts of these entries."""
        return sum(entry["count"] for entry in self.logged(event) if facts.items() <= entry.items())

    async def wait_logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`-th entry of this event."""
        await self.until(lambda: len(self.logged(event)) >= count, f"{event} is logged")
        return self.logged(event)[count - 1]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` holds, as long as the process runs."""
        deadline_s = trio.current_time() + LIMIT_S
        while not condition():
            if self.process.poll() is not None and not condition():
                raise AssertionError(f"{self.name} ended with {self.process.returncode} before {what}")
            if trio.current_time() > deadline_s:
                raise AssertionError(f"not within {LIMIT_S:g} s: {what}")
            await trio.sleep(POLL_S)

    async def admin(self) -> Address:
        address: str = (await self.wait_logged("admin_listening"))["address"]
        return parse_address(address)

    async def get(self, path: str) -> httpx.Response:
        base_url = f"http://{await self.admin()}"
        # Without `verify=False` each client loads all certificates of the system, for nothing.
        async with httpx.AsyncClient(base_url=base_url, trust_env=False, verify=False, timeout=LIMIT_S) as client:
            deadline_s = trio.current_time() + LIMIT_S
            while True:
                try:
                    return await client.get(path)
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    # On a busy machine the server gives a connection up before it has come to read the request.
                    if self.process.poll() is not None or trio.current_time() > deadline_s:
                        raise

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = (await self.get("/status")).json()
        return status

    async def until_status(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait until `condition` holds for /status; the status for which it did."""
        deadline_s = trio.current_time() + LIMIT_S
        while not condition(status := await self.status()):
            if trio.current_time() > deadline_s:
                raise AssertionError(f"not within {LIMIT_S:g} s: {what}; the last status: {status}")
            await trio.sleep(POLL_S)
        return status

    async def until_healthy(self, healthy: bool) -> httpx.Response:
        """Wait until /health says so."""
        deadline_s = trio.current_time() + LIMIT_S
        while (answer := await self.get("/health")).is_success != healthy:
            if trio.current_time() > deadline_s:
                raise AssertionError(f"not within {LIMIT_S:g} s: /health turns {healthy}; the last: {answer.text}")
            await trio.sleep(POLL_S)
        return answer

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        deadline_s = trio.current_time() + LIMIT_S
        while (code := self.process.poll()) is None:
            if trio.current_time() > deadline_s:
                raise AssertionError(f"{self.name} did not end within {LIMIT_S:g} s")
            await trio.sleep(POLL_S)
        return code

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop; the exit code."""
        self.process.send_signal(number)
        return await self.ended()

    async def kill(self) -> None:
        self.process.kill()
        await self.ended()


@attrs.define
class Ends:
    """The processes of one test, and the configuration that they share."""

    directory: Path
    environ: dict[str, str] = attrs.field(factory=dict)
    """Further environment variables for all of them."""
    running: list[End] = attrs.field(factory=list)
    host: str = attrs.field(factory=free_host)
    address: Address = attrs.field(init=False)
    """Where the ingress sends to."""

    def __attrs_post_init__(self) -> None:
        self.address = self.free_address()

    def free_address(self) -> Address:
        return Address(self.host, free_port(self.host))

    @property
    def file(self) -> Path:
        return self.directory / "pair.toml"

    def configure(
        self, source: str = "", sink: str = "", spool: str = "", **link: str | int | list[str] | Mapping[str, str]
    ) -> None:
        """Write the configuration file. `link`: keys of [link] beside those that every test has."""
        keys: dict[str, str | int | list[str] | Mapping[str, str]] = {
            "name": "orders",
            "address": str(self.address),
            "rate": "100 Mbit/s",
            "heartbeat_interval": "100ms",
            "interruption_timeout": "1s",
            "state_directory": str(self.directory / "state"),
            **link,
        }
        lines = ["[link]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
        lines += [f"[source]\n{source}"] if source else []
        lines += [f"[sink]\n{sink}"] if sink else []
        lines += [f"[spool]\n{spool}"] if spool else []
        lines += ["[admin]", f'listen = "{self.host}:0"', "[log]", 'format = "json"']
        self.file.write_text("\n".join(lines) + "\n")

    def remember_a_session(self, state_directory: str = "state", name: str = "orders") -> None:
        """Give the ingress a stored state, so that its next session need not announce itself first."""
        link = Link(name=name, address=self.address)
        with IngressState.open(self.directory / state_directory, link.name, link.id) as state:
            state.begin_session(1)

    def start(
        self,
        role: str,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: Path | None = None,
        passed: socket.socket | None = None,
    ) -> End:
        """Start an end, with arguments before the file; `stdin` may be `subprocess.PIPE`, `stdout` is appended to;
        `passed` is a socket that it is given as a service manager gives it."""
        name = f"{role} {len(self.running)}"
        log_file = self.directory / f"{name.replace(' ', '-')}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("GAPCONN_")}
        with log_file.open("wb") as log, (stdout or Path(os.devnull)).open("ab") as standard_out:
            service = [] if passed is None else ["-c", _AS_SERVICE, str(passed.fileno())]
            process = subprocess.Popen(
                [sys.executable, *service, "-m", "gapconn", role, *arguments, str(self.file)],
                stdin=stdin,
                stdout=standard_out,
                stderr=log,
                env={**inherited, **self.environ, **(environ or {})},
                cwd=self.directory,
                pass_fds=() if passed is None else [passed.fileno()],
            )
        end = End(name, process, log_file)
        self.running.append(end)
        return end

    async def egress(self, **options: Any) -> End:
        """Start an egress and wait until it listens."""
        end = self.start("egress", **options)
        await end.wait_logged("sink_started")
        return end

    async def ingress(self, **options: Any) -> End:
        """Start an ingress and wait until it sends data."""
        end = self.start("ingress", **options)
        await end.wait_logged("source_started")
        return end

    def close(self) -> None:
        """End what still runs; print the logs, which are shown when the test failed."""
        for end in self.running:
            if end.process.poll() is None:
                end.process.kill()
                end.process.wait()
            if end.process.stdin is not None:
                end.process.stdin.close()
            print(f"--- {end.name}: exit code {end.process.returncode}\n{end.log_file.read_text()}")  # noqa: T201 - see above
