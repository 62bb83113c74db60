"""Reading the configuration of a pair: values, defaults, the environment, and every problem at once."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest

from gapconn import plugins
from gapconn.config import Admin, Link, Log, Pair, Role, option, public_values
from gapconn.errors import ConfigError
from gapconn.pair_file import load_pair
from gapconn.plugins import Carries
from gapconn.units import Address, BitsPerSecond, Bytes, Seconds

SMALLEST = """
[link]
name = "orders"
address = "127.0.0.1:7400"
"""

ENDS = """
[source]
type = "toy"
topics = ["orders"]
[sink]
type = "toy"
"""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen(kw_only=True)
class Nested:
    depth: int = option(help="How deep.")


@attrs.frozen(kw_only=True)
class ToyConfig:
    topics: list[str] = option(help="Topics.")
    start: Literal["earliest", "latest"] = option(help="Where to begin.", default="earliest")
    colour: Colour = option(help="A colour.", default=Colour.RED)
    timeout: Seconds | None = option(help="A limit.", default=None)
    size: Bytes = option(help="A size.", default=Bytes(1024))
    share: float = option(help="A share.", default=0.5)
    strict: bool = option(help="A switch.", default=False)
    peers: tuple[Address, ...] = option(help="Peers.", default=())
    client: dict[str, str | int | bool] = option(help="Settings.", factory=dict)
    nested: Nested | None = option(help="A table.", default=None)
    password: str | None = option(help="A secret.", default=None, secret=True)
    low: int = option(help="Low.", default=1)
    high: int = option(help="High.", default=10)

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        if self.password is not None and len(self.password) < 3:
            raise ValueError("password must have 3 characters")


class ToySource:
    """Toy."""

    Config: ClassVar[type[Any]] = ToyConfig
    carries: ClassVar[Carries] = Carries.RECORDS


@attrs.frozen(kw_only=True)
class ToySinkConfig:
    token: str = option(help="A secret.", default="", secret=True)


class ToySink:
    """Toy."""

    Config: ClassVar[type[Any]] = ToySinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.RECORDS})


class ChunkSource(ToySource):
    """Toy that carries chunks, or records on request."""

    carries: ClassVar[Carries] = Carries.CHUNKS

    @classmethod
    def carries_with(cls, config: ToyConfig) -> Carries:
        return Carries.RECORDS if config.strict else Carries.CHUNKS


@attrs.frozen
class FakeEntryPoint:
    name: str
    plugin: Any

    def load(self) -> Any:
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Third-party plugins as installed entry points."""
    installed = {
        "gapconn.sources": [
            FakeEntryPoint("toy", ToySource),
            FakeEntryPoint("chunky", ChunkSource),
            FakeEntryPoint("broken", ImportError("no module named 'left_out'")),
        ],
        "gapconn.sinks": [FakeEntryPoint("toy", ToySink)],
    }

    def entry_points(*, group: str, name: str | None = None) -> list[FakeEntryPoint]:
        return [entry for entry in installed[group] if name in (None, entry.name)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


Load = Callable[..., Pair]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads text as `pair.toml`, in an environment that is empty unless given."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str, environ: Mapping[str, str] | None = None, role: Role | None = None) -> Pair:
        Path("pair.toml").write_text(text)
        return load_pair(Path("pair.toml"), environ or {}, role=role)

    return load_text


@pytest.fixture
def problems(load: Load) -> Callable[..., list[str]]:
    """The problems with a text."""

    def find(text: str, environ: Mapping[str, str] | None = None, role: Role | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, environ, role)
        return caught.value.problems

    return find


Problems = Callable[..., list[str]]


def test_the_smallest_file_has_defaults_for_the_rest(load: Load) -> None:
    link = load(SMALLEST).link
    assert link == Link(name="orders", address=Address("127.0.0.1", 7400))
    assert (link.mtu_bytes, link.rate_bps, link.bind) == (1500, 1_000_000_000, None)
    assert link.listen == link.address
    assert (link.heartbeat_interval_s, link.interruption_timeout_s, link.hold_s) == (1.0, 3.0, 0.2)
    assert (link.batch_bytes, link.message_bytes_max) == (1 << 20, 16 << 20)
    assert (link.reassembly_bytes_max, link.receive_buffer_bytes, link.sink_buffer_bytes) == (
        64 << 20,
        32 << 20,
        16 << 20,
    )
    assert link.shutdown_grace_s == 10.0


def test_sections_that_are_absent(load: Load) -> None:
    pair = load(SMALLEST)
    assert (pair.source, pair.sink, pair.admin, pair.log) == (None, None, None, Log())
    assert load(SMALLEST + "[admin]").admin == Admin(listen=Address("127.0.0.1", 9464))


def test_every_value_of_the_link(load: Load) -> None:
    link = load(
        """
        [link]
        name = "a.b-c_1"
        id = 7
        address = "[2001:db8::1]:7400"
        bind = "0.0.0.0:7401"
        mtu_bytes = 9000
        rate = "unlimited"
        heartbeat_interval = "500ms"
        interruption_timeout = "2s"
        hold = 0.5
        message_bytes_max = "64 MiB"
        batch_bytes = "1 MiB"
        receive_buffer_bytes = "1 MiB"
        shutdown_grace = "1 min"
        state_directory = "/srv/gapconn"
        """
    ).link
    assert (link.id, link.address, link.bind) == (7, Address("2001:db8::1", 7400), Address("0.0.0.0", 7401))
    assert (link.listen, link.mtu_bytes, link.rate, link.interruption_timeout) == (link.bind, 9000, 0, 2.0)
    # The limits that must hold such a message grow with it.
    assert (link.reassembly_bytes_max, link.sink_buffer_bytes) == (128 << 20, 64 << 20)
    assert (link.shutdown_grace, link.state_directory) == (60.0, "/srv/gapconn")


def test_the_batch_default_shrinks_with_the_message(load: Load) -> None:
    assert load(SMALLEST + 'message_bytes_max = "64 KiB"').link.batch_bytes == 64 << 10


def test_the_link_id_is_the_beginning_of_the_names_sha256() -> None:
    # printf orders | sha256sum
    assert Link(name="orders", address=Address("h", 1)).id == 0x1C168ADB


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        (0, {"XDG_STATE_HOME": "/x"}, "/var/lib/gapconn"),
        (1000, {"XDG_STATE_HOME": "/x"}, "/x/gapconn"),
        (1000, {"HOME": "/home/u"}, "/home/u/.local/state/gapconn"),
    ],
)
def test_state_directory(monkeypatch: pytest.MonkeyPatch, uid: int, environ: dict[str, str], expected: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert Link(name="a", address=Address("h", 1)).state_directory == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('mtu_bytes = "abc"', "link.mtu_bytes: not a whole number: got 'abc', allowed: 576 to 65535"),
        ("mtu_bytes = 1500.0", "link.mtu_bytes: not a whole number: got 1500.0, allowed: 576 to 65535"),
        ("mtu_bytes = true", "link.mtu_bytes: not a whole number: got True, allowed: 576 to 65535"),
        ("mtu_bytes = 575", "link.mtu_bytes: must be at least 576: got 575, allowed: 576 to 65535"),
        ("mtu_bytes = 65536", "link.mtu_bytes: must be at most 65535: got 65536, allowed: 576 to 65535"),
        ("id = 0", "link.id: must be at least 1: got 0, allowed: 1 to 4294967295"),
        ("id = 4294967296", "link.id: must be at most 4294967295: got 4294967296, allowed: 1 to 4294967295"),
        ("rate = 1", "link.rate: too slow: got 1"),
        (
            'rate = "1 GB/s"',
            "link.rate: unknown unit 'GB/s' (units are Tbit/s, Gbit/s, Mbit/s, kbit/s, bit/s): "
            "got '1 GB/s', allowed: at least",
        ),
        ('heartbeat_interval = "1ms"', "link.heartbeat_interval: must be at least 10ms: got '1ms'"),
        (
            'interruption_timeout = "1999ms"',
            "shorter than 2 heartbeat intervals (2s): got '1999ms', allowed: at least 2",
        ),
        ('hold = "2 h"', "link.hold: must be at most 1h: got '2 h'"),
        ('order = "any"', 'link.order: not one of the choices: got \'any\', allowed: "strict", "available"'),
        ('reorder_timeout = "2 s"', "link.reorder_timeout: is now called hold"),
        ('message_bytes_max = "65 MiB"', "link.message_bytes_max: must be at most 64 MiB: got '65 MiB'"),
        ('batch_bytes = "17 MiB"', "link.batch_bytes: more than message_bytes_max (16 MiB): got '17 MiB'"),
        ('reassembly_bytes_max = "31 MiB"', "less than twice message_bytes_max (32 MiB): got '31 MiB'"),
        ('sink_buffer_bytes = "1 MiB"', "link.sink_buffer_bytes: less than message_bytes_max (16 MiB)"),
        ("receive_buffer_bytes = 1", "link.receive_buffer_bytes: must be at least 64 KiB: got 1"),
        ('shutdown_grace = "2h"', "link.shutdown_grace: must be at most 1h: got '2h'"),
        ('bind = "7400"', "link.bind: no port: got '7400', allowed: an address such as"),
        ("mtu = 1500", "link.mtu: unknown key 'mtu' (did you mean 'mtu_bytes'?)"),
        ('repeat = ["10m", "30s"]', "link.repeat: not in rising order: got ['10m', '30s'], allowed: up to 5 durations"),
        ('repeat = ["0s"]', "link.repeat: a delay of 0: got ['0s'], allowed: up to 5 durations"),
        ('repeat = ["1h", "25h"]', "link.repeat: too many, or too long: got ['1h', '25h'], allowed: up to 5"),
        ("rat = 1", "link.rat: unknown key 'rat' (did you mean 'rate'?)"),
        ("colour = 1", "link.colour: unknown key 'colour', allowed: name, id, address, bind, mtu_bytes"),
    ],
)
def test_a_wrong_value_of_the_link(problems: Problems, line: str, problem: str) -> None:
    (found,) = problems(SMALLEST + line)
    assert found.startswith("pair.toml: link.")
    assert problem in found


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ('[source]\ntype = "tcp"\nlisten = "h:2"\n[sink]\ntype = "tcp"\nconnect = "h:3"', "takes byte streams"),
        ('[sink]\ntype = "kafka"\nbootstrap_servers = "h:2"\ndelivery = "exactly-once"', "needs order"),
    ],
)
def test_sinks_that_need_messages_in_their_order(problems: Problems, ends: str, why: str) -> None:
    (found,) = problems(f'{SMALLEST}\norder = "available"\n{ends}')
    assert found.startswith("pair.toml: link.order: ")
    assert why in found
    assert found.endswith('got "available", allowed: "strict"')


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("max_bytes = 1000", "spool.max_bytes: too small for a spool: got 1000, allowed: 0, or at least"),
        ('after = "2h"', "spool.after: must be at most 1h: got '2h'"),
        ("max_byte = 1", "spool.max_byte: unknown key 'max_byte' (did you mean 'max_bytes'?)"),
    ],
)
def test_a_wrong_value_of_the_spool(problems: Problems, line: str, problem: str) -> None:
    (found,) = problems(f"{SMALLEST}\n[spool]\n{line}")
    assert found.startswith(f"pair.toml: {problem}")


@pytest.mark.parametrize("name", ["", "or ders", "a/b", "..", "ä", "x" * 65])
def test_a_name_that_is_none(problems: Problems, name: str) -> None:
    (found,) = problems(f'[link]\nname = "{name}"\naddress = "h:1"')
    assert f"link.name: not a name: got {name!r}"[:60] in found


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0:7400", "no destination (to listen on every address of the egress, set link.bind)"),
        ("[::]:7400", "no destination"),
        ("239.1.1.1:7400", "could reach several egresses, but an ingress has exactly one"),
        ("[ff02::1]:7400", "could reach several egresses"),
        ("255.255.255.255:7400", "could reach several egresses"),
        ("host:0", "nothing can be sent to port 0"),
    ],
)
def test_an_address_that_is_not_one_egress(problems: Problems, address: str, reason: str) -> None:
    (found,) = problems(f'[link]\nname = "a"\naddress = "{address}"')
    assert f"link.address: {reason}" in found


def test_all_problems_at_once(problems: Problems) -> None:
    found = problems(
        """
        stray = 1
        [lnik]
        [link]
        mtu_bytes = 1
        rate = "fast"
        heartbeat_interval = "nope"
        interruption_timeout = "1s"
        [source]
        type = "tyo"
        [sink]
        type = "toy"
        tokn = "x"
        [admin]
        listen = "x"
        [log]
        level = "loud"
        format = "jsn"
        """,
        {"GAPCONN_NONSENSE": "1", "GAPCONN_LINK_MTU": "2"},
    )
    expected = [
        "a key outside of a section: 'stray', allowed: link, source, sink, spool, repeat_buffer, admin, log",
        "unknown section 'lnik' (did you mean 'link'?)",
        "environment: GAPCONN_NONSENSE: unknown variable, allowed: GAPCONN_LINK_<KEY>",
        "environment: GAPCONN_LINK_MTU: unknown key 'mtu' (did you mean 'mtu_bytes'?)",
        "link.name: missing, allowed: 1 to 64 letters",
        "link.address: missing",
        "link.rate: not a rate: got 'fast'",
        "link.heartbeat_interval: not a duration: got 'nope'",
        "link.mtu_bytes: must be at least 576: got 1",
        "source.type: unknown type (did you mean 'toy'?): got 'tyo', allowed: kafka, udp",
        "sink.tokn: unknown key 'tokn' (did you mean 'token'?)",
        "admin.listen: no port: got 'x'",
        'log.level: not one of the choices: got \'loud\', allowed: "debug", "info"',
        'log.format: not one of the choices (did you mean \'json\'?): got \'jsn\', allowed: "auto", "console", "json"',
    ]
    missing = [problem for problem in expected if not any(problem in one for one in found)]
    assert (missing, len(found)) == ([], len(expected))


def test_sections_that_are_no_sections(problems: Problems) -> None:
    found = problems('link = 5\nadmin = "x"')
    assert any("link: not a section: write it as [link]" in one for one in found)
    assert any("admin: not a section: write it as [admin]" in one for one in found)
    assert problems("") == ["pair.toml: link: the section [link] is missing"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[link]\nname = orders\n", r"pair.toml: not TOML: .*\(at line 2, column 8\)"),
        (b"[link]\nname = 'a", r"pair.toml: not TOML: .*\(at end of document\)"),
        (b"[link]\nname = 'a'\nname = 'b'", r"pair.toml: not TOML: .*\(at .*\)"),
        (b"[link]\nname = '\xff'", "pair.toml: not UTF-8 text: invalid start byte at byte 15"),
    ],
)
def test_a_file_that_is_not_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pair.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        load_pair(Path("pair.toml"), {})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: there is no such file"):
        load_pair(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="a directory, not a file"):
        load_pair(tmp_path, {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_pair(tmp_path / "file" / "pair.toml", {})


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "pair.toml").write_text(SMALLEST, encoding="utf-8-sig")
    assert load_pair(tmp_path / "pair.toml", {}).link.name == "orders"


# Sources and sinks


def test_values_of_every_type(load: Load) -> None:
    pair = load(
        SMALLEST
        + """
        [source]
        type = "toy"
        topics = ["a", "b"]
        start = "latest"
        colour = "blue"
        timeout = "5 min"
        size = 10
        share = 1
        strict = true
        peers = ["a:1", "[::1]:2"]
        client = { "security.protocol" = "SSL", retries = 3, debug = false }
        nested = { depth = 2 }
        password = "hunter2"
        """
    )
    assert pair.source is not None
    assert (pair.source.type, pair.source.plugin_class.__name__) == ("toy", "ToySource")
    assert pair.source.config == ToyConfig(
        topics=["a", "b"],
        start="latest",
        colour=Colour.BLUE,
        timeout=Seconds(300.0),
        size=Bytes(10),
        share=1.0,
        strict=True,
        peers=(Address("a", 1), Address("::1", 2)),
        client={"security.protocol": "SSL", "retries": 3, "debug": False},
        nested=Nested(depth=2),
        password="hunter2",
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('topics = "a"', "source.topics: not a list: got 'a', allowed: a list of text such as [\"text\"]"),
        ("topics = [1]", "source.topics[0]: not text (in quotes): got [1]"),
        (
            'start = "late"',
            "source.start: not one of the choices (did you mean 'latest'?): got 'late', allowed: \"earliest\"",
        ),
        ('colour = "green"', 'source.colour: not one of the choices: got \'green\', allowed: "red", "blue"'),
        ('timeout = "x"', "source.timeout: not a duration: got 'x', allowed: a duration such as \"200ms\""),
        ('share = "x"', "source.share: not a number"),
        ("strict = 1", "source.strict: not true or false: got 1, allowed: true or false"),
        ('peers = ["a"]', "source.peers[0]: no port"),
        ("client = 1", "source.client: not a table: got 1"),
        ("client = { x = [] }", "source.client.x: of the wrong type"),
        ("nested = 1", "source.nested: not a table"),
        ('nested = { depth = "x" }', "source.nested.depth: not a whole number"),
        ("nested = { depht = 1 }", "source.nested: unknown key 'depht' (did you mean 'depth'?)"),
        ("low = 11", "pair.toml: source: low must not be above high"),
        ("password = 12345", "source.password: not text (in quotes): got a secret that is not shown"),
    ],
)
def test_a_wrong_value_of_a_plugin(problems: Problems, line: str, problem: str) -> None:
    topics = "" if line.startswith("topics") else "topics = []\n"
    found = problems(f'{SMALLEST}[source]\ntype = "toy"\n{topics}{line}')
    assert any(problem in one for one in found)
    assert "12345" not in str(found)


def test_the_type_of_a_section(problems: Problems) -> None:
    assert problems(SMALLEST + "[source]") == [
        "pair.toml: source.type: missing, allowed: kafka, udp, tcp, files, stdin, generate, toy, chunky, broken"
    ]
    assert "source.type: unknown type: got 7" in problems(SMALLEST + "[source]\ntype = 7")[0]
    assert "cannot be imported: no module named 'left_out'" in problems(SMALLEST + '[source]\ntype = "broken"')[0]


def test_a_sink_that_cannot_take_what_the_source_carries(load: Load, problems: Problems) -> None:
    chunky = SMALLEST + '[sink]\ntype = "toy"\n[source]\ntype = "chunky"\ntopics = []\n'
    mismatch = "pair.toml: the chunky source carries chunks of byte streams, but the toy sink accepts only records"
    assert problems(chunky) == [mismatch]
    # Each end sees it too, though it does not use the other's section.
    assert problems(chunky, role=Role.INGRESS) == [mismatch]
    assert load(chunky + "strict = true").source is not None


def test_an_end_needs_its_own_section(problems: Problems) -> None:
    assert problems(SMALLEST, role=Role.INGRESS) == [
        "pair.toml: source: the section [source] is missing, and the ingress needs it"
    ]
    assert problems(SMALLEST, role=Role.EGRESS) == [
        "pair.toml: sink: the section [sink] is missing, and the egress needs it"
    ]


def test_an_end_is_not_concerned_with_the_other_section(load: Load, problems: Problems) -> None:
    secret_of_the_sink = SMALLEST + ENDS + 'token = "${SINK_TOKEN}"'
    pair = load(secret_of_the_sink, role=Role.INGRESS)
    assert (pair.source is not None, pair.sink) == (True, None)
    assert problems(secret_of_the_sink, role=Role.EGRESS) == [
        "pair.toml: sink.token: the environment variable 'SINK_TOKEN' is not set, but ${SINK_TOKEN} needs it"
    ]
    egress = load(SMALLEST + '[source]\ntype = "not installed here"\n[sink]\ntype = "toy"', role=Role.EGRESS)
    assert (egress.source, egress.sink is not None) == (None, True)


# The environment


def test_the_environment_overrides_any_key(load: Load) -> None:
    pair = load(
        SMALLEST + ENDS,
        {
            "GAPCONN_LINK_NAME": "12",
            "GAPCONN_LINK_MTU_BYTES": "9000",
            "GAPCONN_LINK_RATE": "2 Gbit/s",
            "GAPCONN_LINK_RECEIVE_BUFFER_BYTES": "1048576",
            "GAPCONN_SOURCE_TOPICS": '["x", "y"]',
            "GAPCONN_SOURCE_CLIENT": '{ "ssl.ca.location" = "/ca" }',
            "GAPCONN_SOURCE_STRICT": "true",
            "GAPCONN_SOURCE_PASSWORD": "1e5",
            "GAPCONN_ADMIN_LISTEN": "127.0.0.1:9465",
            "GAPCONN_LOG_LEVEL": '"debug"',
            "GAPCONN_TEST_KAFKA": "127.0.0.1:9092",
            "PATH": "/bin",
        },
    )
    assert (pair.link.name, pair.link.mtu_bytes, pair.link.rate) == ("12", 9000, 2 * 10**9)
    assert pair.link.receive_buffer_bytes == 1 << 20
    assert pair.source is not None
    source = pair.source.config
    assert (source.topics, source.client, source.strict) == (["x", "y"], {"ssl.ca.location": "/ca"}, True)
    assert source.password == "1e5"
    assert pair.admin == Admin(listen=Address("127.0.0.1", 9465))
    assert pair.log.level == "debug"


def test_a_table_inside_a_section(load: Load, problems: Problems) -> None:
    assert load(SMALLEST + ENDS).link.fec.repair_share == 500
    assert load(SMALLEST + "fec = { repair = 0 }" + ENDS).link.fec.repair_share == 0
    written = SMALLEST + '[link.fec]\nrepair = "12.5%"' + ENDS
    assert load(written).link.fec.repair_share == 1_250
    assert load(written, {"GAPCONN_LINK_FEC_REPAIR": "100%"}).link.fec.repair_share == 10_000
    assert load(written, {"GAPCONN_LINK_FEC": '{ repair = "1%" }'}).link.fec.repair_share == 100
    assert public_values(load(written).link)["fec"] == {"repair": 12.5}
    for text, environ, problem in (
        ('[link.fec]\nrepair = "101%"', {}, "link.fec.repair: must be at most 100%: got '101%', allowed: 0 to"),
        ("[link.fec]\nrepair = 5", {}, 'link.fec.repair: no "%" behind it: got 5, allowed: 0 to "100%"'),
        ("[link.fec]\nrepare = 5", {}, "link.fec.repare: unknown key 'repare' (did you mean 'repair'?)"),
        ("fec = 5", {}, "link.fec: not a table: got 5"),
        ('fec_repair = "5%"', {}, "link.fec_repair: unknown key 'fec_repair'"),
        ("", {"GAPCONN_LINK_FEC_REPAIR": "much"}, "environment: GAPCONN_LINK_FEC_REPAIR: not a percentage: got 'much'"),
        ("", {"GAPCONN_LINK_FEC_SPEED": "1"}, "environment: GAPCONN_LINK_FEC_SPEED: unknown key 'speed'"),
    ):
        (found,) = problems(SMALLEST + text + ENDS, environ)
        assert problem in found, found


def test_a_whole_section_can_come_from_the_environment(load: Load) -> None:
    environ = {"GAPCONN_LINK_NAME": "a", "GAPCONN_LINK_ADDRESS": "h:1", "GAPCONN_SINK_TYPE": "toy"}
    pair = load("", environ, Role.EGRESS)
    assert pair.link.name == "a"
    assert pair.sink is not None


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        (
            "GAPCONN_LINK_MTU_BYTES",
            "big",
            "GAPCONN_LINK_MTU_BYTES: not a whole number: got 'big', allowed: 576 to 65535",
        ),
        ("GAPCONN_LINK_MTU_BYTES", "1", "GAPCONN_LINK_MTU_BYTES: must be at least 576: got '1'"),
        ("GAPCONN_LINK_MTU_BYTES", "1500\nrate = 1", "GAPCONN_LINK_MTU_BYTES: not a whole number"),
        (
            "GAPCONN_LNIK_NAME",
            "a",
            "GAPCONN_LNIK_NAME: unknown variable (did you mean 'link'?), allowed: GAPCONN_LINK_<KEY>",
        ),
        ("GAPCONN_LINK", "a", "GAPCONN_LINK: unknown variable"),
        ("GAPCONN_SOURCE_TYPE", "tyo", "GAPCONN_SOURCE_TYPE: unknown type (did you mean 'toy'?): got 'tyo'"),
        ("GAPCONN_SOURCE_TOPIC", "a", "GAPCONN_SOURCE_TOPIC: unknown key 'topic' (did you mean 'topics'?)"),
        ("GAPCONN_LINK_PORT", "7400", "GAPCONN_LINK_PORT: unknown key 'port'"),
        ("GAPCONN_SOURCE_PASSWORD", "ab", "source: password must have 3 characters"),
    ],
)
def test_a_wrong_variable(problems: Problems, variable: str, text: str, problem: str) -> None:
    (found,) = problems(SMALLEST + ENDS, {variable: text})
    assert problem in found


def test_variables_that_kubernetes_sets_are_no_configuration(load: Load) -> None:
    environ = {
        "GAPCONN_SERVICE_HOST": "10.0.0.1",
        "GAPCONN_PORT": "udp://10.0.0.1:7400",
        "GAPCONN_EGRESS_SERVICE_PORT_DATA": "7400",
        "GAPCONN_EGRESS_PORT_7400_UDP": "udp://10.0.0.1:7400",
        "GAPCONN_LINK_PORT_7400_UDP_ADDR": "10.0.0.1",
    }
    assert load(SMALLEST, environ).link.name == "orders"


def test_variables_in_the_strings_of_the_file(load: Load) -> None:
    pair = load(
        """
        [link]
        name = "${SITE}-orders"
        address = "${HOST}:${PORT}"
        mtu_bytes = "${MTU}"
        [source]
        type = "${KIND}"
        topics = ["${SITE}", "$${SITE}", "^a$"]
        client = { "sasl.password" = "${PASSWORD}" }
        password = "${PASSWORD}"
        """,
        {"SITE": "north", "HOST": "10.0.0.1", "PORT": "7400", "MTU": "9000", "KIND": "toy", "PASSWORD": "12${SITE}"},
    )
    assert (pair.link.name, pair.link.address) == ("north-orders", Address("10.0.0.1", 7400))
    assert pair.link.mtu_bytes == 9000
    assert pair.source is not None
    assert pair.source.config.topics == ["north", "${SITE}", "^a$"]
    assert pair.source.config.client == {"sasl.password": "12${SITE}"}
    assert pair.source.config.password == "12${SITE}"


def test_variables_that_are_not_set(problems: Problems) -> None:
    text = '[link]\nname = "${A}${B}"\naddress = "h:1"\n[source]\ntype = "toy"\ntopics = ["x${C}"]'
    assert problems(text, {"B": "b"}) == [
        "pair.toml: link.name: the environment variable 'A' is not set, but ${A} needs it",
        "pair.toml: source.topics: the environment variable 'C' is not set, but ${C} needs it",
    ]


def test_what_a_variable_held_is_not_in_the_problem(problems: Problems) -> None:
    (found,) = problems(SMALLEST + 'bind = "${SECRET}"', {"SECRET": "hunter2"})
    assert "got '${SECRET}'" in found
    assert "hunter2" not in found


# Secrets


def test_secrets_are_not_shown(load: Load, problems: Problems) -> None:
    source = load(SMALLEST + ENDS, {"GAPCONN_SOURCE_PASSWORD": "hunter2"}).source
    assert source is not None
    assert source.config.password == "hunter2"
    assert "hunter2" not in repr(source)
    values = public_values(source.config)
    assert values["password"] == "***"
    assert (values["topics"], values["timeout"], values["colour"]) == (["orders"], None, "red")


def test_a_validators_reason_does_not_quote_a_secret(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def loud(_: object, __: object, value: str) -> None:
        raise ValueError(f"{value!r} is weak" if value == "hunter2" else "is weak")

    @attrs.frozen(kw_only=True)
    class Loud:
        password: str = option(help="A secret.", secret=True, validator=loud)

    monkeypatch.setattr(ToySource, "Config", Loud)
    text = SMALLEST + '[source]\ntype = "toy"\npassword = '
    with pytest.raises(ConfigError, match=r"source\.password: not accepted: got a secret that is not shown"):
        load(text + '"hunter2"')
    with pytest.raises(ConfigError, match=r"source\.password: is weak: got a secret that is not shown"):
        load(text + '"abc"')


def test_public_values_are_those_of_json() -> None:
    link = Link(name="a", address=Address("h", 1), rate=BitsPerSecond(10**6))
    values = public_values(link)
    assert (values["address"], values["bind"], values["rate"]) == ("h:1", None, 1_000_000)
    assert values["interruption_timeout"] == 3.0


SEALED = SMALLEST + '[link.security]\nmode = "aes-256-gcm"\nkey_file = "/etc/orders.key"' + ENDS


def test_security(load: Load) -> None:
    assert not load(SMALLEST + ENDS).link.security.sealed
    security = load(SEALED).link.security
    assert (security.sealed, security.mode, security.key_file) == (True, "aes-256-gcm", "/etc/orders.key")
    elsewhere = load(SEALED, {"GAPCONN_LINK_SECURITY_KEY_FILE": "/run/secrets/1"}).link.security
    assert (elsewhere.mode, elsewhere.key_file) == ("aes-256-gcm", "/run/secrets/1")
    by_environment = {"GAPCONN_LINK_SECURITY_MODE": "aes-256-gcm", "GAPCONN_LINK_SECURITY_KEY_FILE": "/k"}
    assert load(SMALLEST + ENDS, by_environment).link.security.sealed
    assert public_values(load(SEALED).link)["security"] == {"mode": "aes-256-gcm", "key_file": "/etc/orders.key"}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ('mode = "aes-256-gcm"', "link.security.key_file: missing, and sealed datagrams need it"),
        ('key_file = "/k"', 'link.security.key_file: no use for it while security.mode is "none"'),
        ('mode = "none"\nkey_file = "/k"', 'link.security.key_file: no use for it while security.mode is "none"'),
        ('mode = "aes-128-gcm"\nkey_file = "/k"', "link.security.mode: not one of the choices"),
        ('mode = "aes-256-gcm"\nkey_file = 5', "link.security.key_file: not text (in quotes)"),
        (
            'mode = "aes-256-gcm"\nkeyfile = "/k"',
            "link.security.keyfile: unknown key 'keyfile' (did you mean 'key_file'?)",
        ),
    ],
)
def test_wrong_security(problems: Problems, keys: str, sentence: str) -> None:
    assert any(sentence in problem for problem in problems(f"{SMALLEST}[link.security]\n{keys}{ENDS}"))


def test_a_sink_of_byte_streams_needs_its_order(tmp_path: Path) -> None:
    text = """
        [link]
        name = "orders"
        address = "127.0.0.1:7400"
        order = "available"
        [sink]
        type = "files"
        directory = "/tmp/x"
        """
    path = tmp_path / "pair.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r'link\.order: the files sink takes byte streams: got "available"'):
        load_pair(path, {}, role=Role.EGRESS)
    path.write_text(text.replace('"files"', '"stdout"').replace('directory = "/tmp/x"', ""))
    assert load_pair(path, {}, role=Role.EGRESS).link.order == "available"
