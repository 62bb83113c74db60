"""Several pairs that share a consumer group, and a monitor that watches them, as real processes."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from gapconn.config import Link
from gapconn.store.state import IngressState
from gapconn.units import Address
from tests.kafka.cluster import Cluster, Entry
from tests.processes.ends import End, Ends, free_port

TOKEN = "0123456789abcdef0123456789abcdef"
PARTITIONS = 4
ORIGIN = "gapconn-origin"


@attrs.define
class MonitorProcess(Ends):
    """To start monitors; `start("monitor")` reads monitor.toml."""

    @property
    def file(self) -> Path:
        return self.directory / "monitor.toml"


@attrs.define(eq=False)
class PairProcesses:
    """One pair: its file, and where its ends are asked."""

    name: str
    ends: Ends
    ingress_admin: Address
    egress_admin: Address

    @classmethod
    def make(cls, directory: Path, name: str, source: str, sink: str, token_file: Path) -> PairProcesses:
        directory.mkdir()
        ends = Ends(directory)
        ends.configure(source, sink, spool='after = "10ms"', name=name)
        link = Link(name=name, address=ends.address)
        with IngressState.open(directory / "state", link.name, link.id) as state:
            state.begin_session(1)  # so that it need not announce itself first
        admin = [Address(ends.host, free_port(ends.host, socket.SOCK_STREAM)) for _ in range(2)]
        ends.environ["GAPCONN_ADMIN_TOKEN_FILE"] = str(token_file)
        return cls(name, ends, *admin)

    def start(self, role: str) -> End:
        admin = self.ingress_admin if role == "ingress" else self.egress_admin
        return self.ends.start(role, environ={"GAPCONN_ADMIN_LISTEN": str(admin)})

    async def egress(self) -> End:
        """Start it, and wait until it listens."""
        end = self.start("egress")
        await end.wait_logged("sink_started")
        return end

    async def ingress(self) -> End:
        """Start it, and wait until it has partitions to read."""
        end = self.start("ingress")
        await end.wait_logged("partition_assigned")
        return end


@attrs.define(eq=False)
class Site:
    """Pairs that carry one topic, as members of one group, to one target topic."""

    kafka: Cluster
    topic: str
    target: str
    directory: Path
    pairs: list[PairProcesses]
    monitors: MonitorProcess
    sent: int = 0

    @property
    def token_file(self) -> Path:
        return self.directory / "token"

    def configure_monitor(self, **keys: str | int) -> None:
        """Write the file of the monitor; `keys` are those of [monitor] beside what every test has."""
        settings = {
            "name": "one", "listen": f"{self.monitors.host}:0", "interval": "100ms", "deadline": "5s", "failures": 3,
            "recover_after": "1s", "sink_stalled_after": "0", "interrupted_after": "0", "action_timeout": "30s", **keys,
        }  # fmt: skip
        lines = ["[monitor]"]
        lines += [f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in settings.items()]
        for pair in self.pairs:
            lines += [
                f"[pair.{pair.name}]", f'ingress = "http://{pair.ingress_admin}"',
                f'egress = "http://{pair.egress_admin}"', f'token_file = "{self.token_file}"',
                "gap_reports = true", 'gap_interval = "200ms"',
            ]  # fmt: skip
        self.monitors.file.write_text("\n".join([*lines, "[log]", 'format = "json"']) + "\n")

    async def monitor(self) -> End:
        """Start a monitor, and wait until it watches."""
        end = self.monitors.start("monitor")
        await end.wait_logged("monitor_started")
        return end

    async def send(self, count: int) -> None:
        """Append so many records to each partition."""
        numbers = range(self.sent, self.sent + count)
        entries = [Entry(value=b"%d/%d" % (p, n), partition=p) for n in numbers for p in range(PARTITIONS)]
        await trio.to_thread.run_sync(self.kafka.send, self.topic, entries)
        self.sent += count

    async def send_on(self) -> None:
        """Append records until cancelled."""
        while True:
            with trio.CancelScope(shield=True):
                await self.send(5)
            await trio.sleep(0.05)

    @property
    def all_sent(self) -> set[bytes]:
        return {b"%d/%d" % (p, n) for n in range(self.sent) for p in range(PARTITIONS)}

    async def found(self) -> Counter[tuple[str, bytes]]:
        """How often each record is in the target, by its origin id and value."""
        entries = await trio.to_thread.run_sync(self.kafka.read, self.target)
        return Counter(((dict(entry.headers or [])[ORIGIN] or b"").decode(), entry.value or b"") for entry in entries)

    async def everything_arrived(self, watched: End) -> Counter[tuple[str, bytes]]:
        """Wait until all that was sent is in the target; how often each is there."""
        found: Counter[tuple[str, bytes]] = Counter()
        with trio.move_on_after(120):
            while {value for _, value in found} < self.all_sent:
                await trio.sleep(0.3)
                found = await self.found()
        missing = self.all_sent - {value for _, value in found}
        assert not missing, f"{len(missing)} are missing, such as {sorted(missing)[:5]}; {watched.name} watched"
        assert {value for _, value in found} == self.all_sent
        # One origin id for each record: so repetitions can be removed without looking at values.
        assert len({origin for origin, _ in found}) == len(found) == len(self.all_sent)
        return found


@contextmanager
def site(kafka: Cluster, directory: Path, names: tuple[str, ...] = ("a", "b")) -> Iterator[Site]:
    """Pairs of these names, not started; ended with the block."""
    topic = kafka.create_topic(partitions=PARTITIONS)
    target = kafka.create_topic(name=f"copy-{topic}", partitions=PARTITIONS)
    token_file = directory / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN + "\n")
    source = (
        f'type = "kafka"\nbootstrap_servers = "{kafka.address}"\ntopics = ["{topic}"]\ngroup_id = "{topic}"\n'
        'commit_interval = "100ms"'
    )
    sink = f'type = "kafka"\nbootstrap_servers = "{kafka.address}"\ntopic = "copy-{{topic}}"'
    pairs = [PairProcesses.make(directory / name, name, source, sink, token_file) for name in names]
    (directory / "monitor").mkdir()
    monitors = MonitorProcess(directory / "monitor")
    try:
        yield Site(kafka, topic, target, directory, pairs, monitors)
    finally:
        for ends in (*(pair.ends for pair in pairs), monitors):
            ends.close()
