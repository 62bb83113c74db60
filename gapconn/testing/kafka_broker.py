"""A real Apache Kafka broker for tests, from nothing but Java and Maven (or Docker, or one that is already there).

`broker_address` gives every process of a test run the same broker, and starts it if nobody did. `KafkaNode` is a broker
of one's own, to be stopped, killed, paused and started again. Both end with the process that owns them, however it
ends: a small guard process waits beside each broker for that.

    GAPCONN_TEST_KAFKA=host:port    use this broker
    else Java 17 and Maven          one KRaft node from its jars, kept in the user's cache directory
    else a Docker engine            a container of apache/kafka
    else                            BrokerMissingError says what to install
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from gapconn.errors import GapconnError

KAFKA_VERSION = "4.1.0"
ADDRESS_VARIABLE = "GAPCONN_TEST_KAFKA"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion><groupId>gapconn</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""

_LOG4J = """status = error
appender.console.type = Console
appender.console.name = stdout
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %m (%c{1})%n
rootLogger.level = info
rootLogger.appenderRef.stdout.ref = stdout
"""


class BrokerMissingError(GapconnError):
    """No broker can be used or started here. The text says what to install."""


class KafkaNode(ABC):
    """One KRaft node (broker and controller in one) on loopback, with ports of its own that it keeps over restarts.

    Topics are not created by themselves, groups do not wait for more members, and compaction runs at once.

    Args:
        directory: An empty directory for its files; removed with everything in it after the owner has ended.
        owner_pid: The process with which the node ends; by default the calling one.
        properties: Settings of the broker over those for tests.
    """

    def __init__(
        self, directory: Path, *, owner_pid: int | None = None, properties: dict[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.log_file = directory / "broker.log"
        self.port, controller_port = _free_ports(2)
        self._owner_pid = os.getpid() if owner_pid is None else owner_pid
        self._guard: subprocess.Popen[str] | None = None
        self._broker_pid = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # So that a killed node can register again soon; not so short that one on a busy machine is taken for dead.
            "broker.session.timeout.ms": "5000",
            "broker.heartbeat.interval.ms": "200",
            "log.cleaner.backoff.ms": "200",
            "num.network.threads": "2",
            "num.io.threads": "4",
            **(properties or {}),
        }

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> KafkaNode:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, also again after `stop` or `kill` with the same data and port; returns when it answers.

        Raises:
            BrokerMissingError: it did not come up; the text has the end of its log.
        """
        command = self._prepare()
        guard = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._owner_pid), str(self.directory), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C at the terminal is for the tests; the broker outlives them a little.
            start_new_session=True,
        )
        assert guard.stdout is not None
        with guard.stdout as said:
            self._broker_pid = int(said.readline())
        self._guard = guard
        try:
            wait_until_answering(self.address, while_running=guard)
        except BrokerMissingError as error:
            self.stop()
            raise BrokerMissingError(f"{error}; the end of its log:\n{_tail(self.log_file)}") from error

    def stop(self) -> None:
        """Stop it in order, and wait for that."""
        if self._guard is not None:
            self.resume()
            self._guard.terminate()
            self._guard.wait()
            self._guard = None

    def kill(self) -> None:
        """End it with no chance to tell anybody."""
        assert self._guard is not None
        self._signal(signal.SIGKILL)
        self._guard.wait()
        self._guard = None

    def pause(self) -> None:
        """Let it hang: connections stay up, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    @abstractmethod
    def _prepare(self) -> list[str]:
        """Make ready what a start needs; the command that runs the broker in the foreground."""

    @abstractmethod
    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the broker itself; nothing happens when it has ended."""


class JavaNode(KafkaNode):
    """A node from its jars, on this machine's Java."""

    def _prepare(self) -> list[str]:
        java = _java()
        if java is None:
            raise BrokerMissingError("there is no Java (java is not on PATH, JAVA_HOME is not set)")
        classpath = f"{kafka_jars()}/*"
        data, settings, log4j = (self.directory / name for name in ("data", "server.properties", "log4j2.properties"))
        if not data.exists():
            log4j.write_text(_LOG4J)
            lines = {**self.properties, "log.dirs": str(data)}
            settings.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
            quick = [java, "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={log4j}", "-cp", classpath]
            formatted = subprocess.run(
                [*quick, "kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(settings)],
                capture_output=True,
                text=True,
                check=False,
            )
            if formatted.returncode != 0:
                raise BrokerMissingError(f"Kafka could not format its storage: {formatted.stdout}{formatted.stderr}")
        heap = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC"]
        return [java, *heap, f"-Dlog4j2.configurationFile={log4j}", "-cp", classpath, "kafka.Kafka", str(settings)]

    def pause(self) -> None:
        super().pause()
        # A busy machine stops its threads one after the other: until the last one is, it may still answer.
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._guard is not None and self._guard.poll() is None and not _stopped(self._broker_pid):
            if time.monotonic() > deadline:
                raise TimeoutError("the broker does not stop")
            time.sleep(0.001)

    def _signal(self, number: signal.Signals) -> None:
        # No other process can have the number: the guard, of which it is a child, has not collected it while it runs.
        if self._guard is not None and self._guard.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._broker_pid, number)


def _stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped, or it has ended."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread ended meanwhile: look again
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in stats)


class DockerNode(KafkaNode):
    """A node in a container of `apache/kafka`, on the host's network so that its ports are those of a local one."""

    image = f"apache/kafka:{KAFKA_VERSION}"

    def _prepare(self) -> list[str]:
        self._name = f"gapconn-test-{uuid.uuid4().hex[:12]}"
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        data.chmod(0o777)  # The image runs as a user of its own.
        variables = {"CLUSTER_ID": self._stored_cluster_id(), "KAFKA_LOG_DIRS": "/var/lib/kafka/data"}
        for key, value in self.properties.items():
            variables["KAFKA_" + key.upper().replace(".", "_")] = value
        settings = [part for item in variables.items() for part in ("-e", "=".join(item))]
        mounts = ["--network", "host", "-v", f"{data}:/var/lib/kafka/data"]
        return ["docker", "run", "--rm", "--name", self._name, *mounts, *settings, self.image]

    def _signal(self, number: signal.Signals) -> None:
        verb = {signal.SIGKILL: "kill", signal.SIGSTOP: "pause", signal.SIGCONT: "unpause"}[number]
        subprocess.run(["docker", verb, self._name], capture_output=True, check=False)

    def _stored_cluster_id(self) -> str:
        stored = self.directory / "cluster-id"
        if not stored.exists():
            stored.write_text(_cluster_id())
        return stored.read_text()


def make_node(directory: Path, *, owner_pid: int | None = None, properties: dict[str, str] | None = None) -> KafkaNode:
    """A node that can be started here; it is not running yet.

    Raises:
        BrokerMissingError: neither Java with Maven nor Docker can be used.
    """
    problems = []
    try:
        if _java() is None:
            raise BrokerMissingError("there is no Java (java is not on PATH, JAVA_HOME is not set)")
        kafka_jars()
        return JavaNode(directory, owner_pid=owner_pid, properties=properties)
    except BrokerMissingError as error:
        problems.append(str(error))
    if shutil.which("docker") is None:
        problems.append("there is no docker command")
    elif subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        problems.append("docker is installed, but no engine answers it")
    else:
        return DockerNode(directory, owner_pid=owner_pid, properties=properties)
    raise BrokerMissingError(
        "no Kafka broker can be used: " + "; ".join(problems) + f".\nSet {ADDRESS_VARIABLE}=host:port to use a broker "
        "that is there, or install Java 17 and Maven (Debian: apt-get install openjdk-17-jre-headless maven), or run a "
        f"Docker engine with the image {DockerNode.image}."
    )


def broker_address(directory: Path, *, owner_pid: int) -> str:
    """The address of the one broker of a test run: `GAPCONN_TEST_KAFKA`, else one that the first caller starts.

    Args:
        directory: The same for all processes of the run.
        owner_pid: The process with which the run ends; the broker ends with it.

    Raises:
        BrokerMissingError: no broker can be used or started.
    """
    given = os.environ.get(ADDRESS_VARIABLE)
    if given:
        wait_until_answering(given)
        return given
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock"):
        address = directory / "address"
        if not address.exists():
            node = make_node(directory / "node", owner_pid=owner_pid)
            node.start()
            _RUNNING.append(node)
            address.write_text(node.address)
        return address.read_text()


_RUNNING: list[KafkaNode] = []
"""Shared brokers that this process started: its guard is collected only with the process."""


def wait_until_answering(address: str, *, while_running: subprocess.Popen[str] | None = None) -> None:
    """Wait until a broker at `address` answers.

    Raises:
        BrokerMissingError: it did not within `START_TIMEOUT_S`, or `while_running` ended.
    """
    host, _, port = address.partition(",")[0].rpartition(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if while_running is not None and while_running.poll() is not None:
            raise BrokerMissingError("the broker ended at its start")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.05)
            continue
        # Only now, so that the client has no refused connection to complain about.
        client = AdminClient({"bootstrap.servers": address, "log_level": 0})
        with contextlib.suppress(KafkaException):
            client.list_topics(timeout=5)
            return
    raise BrokerMissingError(f"the broker at {address} did not answer within {START_TIMEOUT_S:.0f} s")


def kafka_jars() -> Path:
    """The directory with the broker's jars, fetched with Maven the first time.

    Raises:
        BrokerMissingError: they are not there and cannot be fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gapconn"
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerMissingError("there is no Maven (mvn is not on PATH) to fetch the broker with")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        if not jars.exists():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                Path(work, "pom.xml").write_text(_POM)
                goal = ["dependency:copy-dependencies", "-DoutputDirectory=jars"]
                fetched = subprocess.run(
                    [maven, "-q", "-B", *goal], cwd=work, capture_output=True, text=True, check=False
                )
                if fetched.returncode != 0:
                    raise BrokerMissingError(f"Maven could not fetch the broker: {fetched.stdout}{fetched.stderr}")
                Path(work, "jars").rename(jars)
    return jars


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return str(Path(home, "bin", "java")) if home else shutil.which("java")


def _cluster_id() -> str:
    """A random one, as Kafka writes them. Kafka's tools do not take one that begins with a dash."""
    text = "-"
    while text.startswith("-"):
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    return text


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses, below those which the kernel gives away by itself: so they stay free over a restart."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def _tail(path: Path, lines: int = 30) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def guard(owner_pid: int, directory: Path, command: list[str]) -> int:
    """Run `command` until it ends, its owner ends, or SIGTERM; print its process id first.

    After the owner's end the directory is removed.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with (directory / "broker.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    print(process.pid, flush=True)  # noqa: T201 - this is what the guard's starter reads
    owner_ended = False
    try:
        waiting = select.poll()
        child = os.pidfd_open(process.pid)
        waiting.register(child)
        try:
            waiting.register(os.pidfd_open(owner_pid))
        except ProcessLookupError:
            owner_ended = True
        else:
            owner_ended = child not in [fd for fd, _ in waiting.poll()]
        return process.poll() or 0
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if owner_ended:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
