"""The processes of the demo: started, listened to, and ended whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from gapconn.errors import GapconnError
from gapconn.units import Address, parse_address

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 15.0
TAIL_LINES: Final = 8
_STATUS_TIMEOUT_S: Final = 2.0


class DemoError(GapconnError):
    """The demo cannot go on. The text has what its processes said last, where that helps."""


@attrs.define
class Process:
    """A Python process that says what happens as lines of JSON. It may be started again after it has ended.

    It gets a session of its own, so that a Ctrl-C at the terminal reaches the demo only, which then ends it in order.
    """

    name: str
    arguments: list[str]
    """Behind `python -m`."""
    directory: Path
    """Gets the files `NAME.out` and `NAME.err`."""
    speaks_on: str = "err"
    """Which of the two has the lines of JSON."""
    _process: trio.Process | None = attrs.field(default=None, init=False)
    _heard_bytes: int = attrs.field(default=0, init=False)

    async def start(self) -> None:
        """Start it; its output is appended to what earlier lives wrote."""
        # What the user has set for a link of theirs is not meant for this one.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GAPCONN_")}
        with self._file("out").open("ab") as out, self._file("err").open("ab") as err:
            self._process = await trio.lowlevel.open_process(
                [sys.executable, "-m", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environ,
                cwd=self.directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the present or last life; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait until it has ended, by whatever cause."""
        if self._process is not None:
            await self._process.wait()

    async def kill(self) -> None:
        """End it with no chance to do anything about it."""
        if self._process is not None:
            self._process.kill()
            await self.ended()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end and wait for that.

        Raises:
            DemoError: it did not, or with an exit code other than 0.
        """
        assert self._process is not None
        self._process.terminate()
        with trio.move_on_after(timeout_s):
            await self.ended()
        code = self._process.returncode
        if code is None:
            raise DemoError(f"the {self.name} did not end within {timeout_s:g} s after SIGTERM\n{self.tail()}")
        if code:
            raise DemoError(f"the {self.name} ended with exit code {code} after SIGTERM\n{self.tail()}")

    async def end(self) -> None:
        """Whatever it does, it does not run afterwards."""
        if self._process is not None and self.running:
            self._process.terminate()
            with trio.move_on_after(2) as patience:
                await self.ended()
            if patience.cancelled_caught:
                await self.kill()

    def hear(self) -> list[dict[str, Any]]:
        """What it has said since the last call."""
        try:
            with self._file(self.speaks_on).open("rb") as file:
                file.seek(self._heard_bytes)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        if not whole:
            return []
        self._heard_bytes += len(whole) + 1
        # Anything else, such as a traceback, is for `tail`.
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def tail(self) -> str:
        """Its last words, for an error message."""
        try:
            lines = self._file("err").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        said = [part for line in lines[-TAIL_LINES:] for part in _for_people(line)] or ["(nothing)"]
        return f"the end of the {self.name}'s log:\n" + "\n".join(f"  | {line}" for line in said)

    def _file(self, suffix: str) -> Path:
        return self.directory / f"{self.name}.{suffix}"


def _for_people(line: str) -> list[str]:
    """A line of a log as lines that can be read: of an entry its event and its facts, anything else as it is."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return [line]
    event, exception = entry.pop("event", ""), entry.pop("exception", "")
    facts = " ".join(f"{name}={value}" for name, value in entry.items() if name not in ("timestamp", "link"))
    return [f"{event} {facts}", *str(exception).splitlines()]


async def read_status(admin: Address) -> dict[str, Any] | None:
    """What the end with this admin endpoint shows of itself; None when it does not answer, because it is going."""
    return await trio.to_thread.run_sync(_read_status, admin, abandon_on_cancel=True)


def _read_status(admin: Address) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=_STATUS_TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        status: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return status


def address_said(entry: dict[str, Any]) -> Address:
    """The address in the log entry `admin_listening`."""
    return parse_address(entry["address"])


async def free_udp_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as probe:
        await probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
