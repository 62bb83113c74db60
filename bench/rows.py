"""The rows of the table: what gapconn has to show, each against a plain program in the same run."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import generate_discard, kafka_kafka, kafka_latency, lossy, tcp_tcp, udp_latency
from bench.measure import Figure, link_sections
from bench.quantiles import quantiles
from bench.relay import relay
from bench.row import Effort, Floor, Round, Row
from bench.search import highest_rate

FIRST_TRIALS = 8
"""In the first round the rate is a guess; later ones start from the rate of the one before."""
FURTHER_TRIALS = 3
LOSSY_BPS = 2_000_000_000
"""First rate to try on a link on which the lossy gap, ingress and egress share two CPUs."""
PACED_BPS = 2_000_000_000


@functools.cache
def key_file() -> Path:
    """A new key for the sealed links of this run."""
    directory = tempfile.mkdtemp(prefix="gapconn-bench-")
    file = Path(directory, "key")
    subprocess.run([sys.executable, "-m", "gapconn", "keygen", str(file)], check=True, stdout=subprocess.DEVNULL)
    return file


def _against(plain: Callable[[], Figure], carry: Callable[[int], Figure], guess_bps: int) -> Iterator[Round]:
    """In turn the plain program, and the pair at the highest rate at which nothing is lost."""
    rate_bps, trials, growth = guess_bps, FIRST_TRIALS, 1.5
    while True:
        yardstick = plain()
        pair = highest_rate(carry, rate_bps, trials_max=trials, growth=growth)
        yield Round(plain=yardstick, pair=pair, scores={"ratio": pair.value / yardstick.value})
        rate_bps, trials, growth = pair.rate_bps, FURTHER_TRIALS, 1.1


def _generate(effort: Effort) -> Iterator[Round]:
    carry = functools.partial(generate_discard.carry, seconds=effort.seconds, link=link_sections(repair="0%"))
    return _against(lambda: relay(effort.seconds), carry, 4_000_000_000)


def _tcp(effort: Effort, *, repair: str, mtu_bytes: int = 1500, sealed: bool = False) -> Iterator[Round]:
    link = link_sections(repair=repair, key_file=key_file() if sealed else None)
    carry = functools.partial(tcp_tcp.carry, seconds=effort.seconds, mtu_bytes=mtu_bytes, link=link)
    return _against(lambda: relay(effort.seconds), carry, 3_000_000_000)


def _kafka(effort: Effort) -> Iterator[Round]:
    with kafka_kafka.running_broker() as address:
        source = kafka_kafka.filled_topic(address)
        carry = functools.partial(kafka_kafka.carry, address, source)
        yield from _against(lambda: kafka_kafka.plain(address, source), carry, 800_000_000)


def _paced(effort: Effort) -> Iterator[Round]:
    while True:
        pair = tcp_tcp.carry(PACED_BPS, 20 * effort.seconds)
        scores = {
            "lost": float(pair.lost),
            "rebuilt": float(pair.detail["rebuilt"]),
            "payload": pair.value,
        }
        yield Round(pair=pair, scores=scores)


def _lossy(effort: Effort, *, faults: tuple[str, ...]) -> Iterator[Round]:
    while True:
        pair = lossy.carry_whole(faults, LOSSY_BPS, effort.total_bytes, link=link_sections(repair="20%"))
        yield Round(pair=pair, scores={"whole": pair.value, "lost": float(pair.lost)})


def _udp_latency(effort: Effort) -> Iterator[Round]:
    while True:
        got = udp_latency.run()
        plain, pair = quantiles(got.direct_ms), quantiles(got.pair_ms)
        yield Round(
            plain=_latency("direct UDP", plain, 0),
            pair=_latency("udp → udp", pair, got.lost),
            scores={f"{name} added": pair[name] - plain[name] for name in ("p50", "p99")},
        )


def _kafka_latency(effort: Effort) -> Iterator[Round]:
    with kafka_kafka.running_broker() as address:
        while True:
            pair, plain = kafka_latency.measure(address, rounds=1, slice_s=2 * effort.seconds)
            yield Round(
                plain=_latency("plain loop", {"p50": plain.p50_ms, "p99": plain.p99_ms}, plain.lost),
                pair=_latency("kafka → kafka", {"p50": pair.p50_ms, "p99": pair.p99_ms}, pair.lost),
                scores={"ratio of p99": pair.p99_ms / plain.p99_ms},
            )


def _latency(what: str, quantiles_ms: dict[str, float], lost: int) -> Figure:
    detail = {"quantiles_ms": quantiles_ms}
    return Figure(what=what, value=quantiles_ms["p99"], unit="ms (p99)", lost=lost, detail=detail)


def _of_the_relay(limit: float) -> dict[str, Floor]:
    return {"ratio": Floor(limit=limit, unit=" of the relay")}


_ALL = {"whole": Floor(limit=100, unit=" %"), "lost": Floor(limit=0, at_most=True)}

ROWS = (
    Row(
        name="generate",
        what="generate → discard, checksum only, no repair",
        floors=_of_the_relay(0.80),
        rounds=_generate,
    ),
    Row(
        name="tcp",
        what="tcp → tcp, 2 % repair",
        floors=_of_the_relay(0.40),
        rounds=functools.partial(_tcp, repair="2%"),
    ),
    Row(
        name="tcp-aes",
        what="tcp → tcp, 10 % repair, AES-256-GCM",
        floors=_of_the_relay(0.22),
        rounds=functools.partial(_tcp, repair="10%", sealed=True),
    ),
    Row(
        name="tcp-9000",
        what="tcp → tcp, MTU 9000, 2 % repair",
        floors=_of_the_relay(0.55),
        rounds=functools.partial(_tcp, repair="2%", mtu_bytes=9000),
    ),
    Row(
        name="kafka",
        what="kafka → kafka on one broker, records of 1 KB with key and headers",
        floors={"ratio": Floor(limit=0.70, unit=" of the plain loop")},
        rounds=_kafka,
    ),
    Row(
        name="udp-latency",
        what="udp → udp, 1,000 messages of 200 B a second, added to direct UDP",
        floors={
            "p50 added": Floor(limit=0.4, unit=" ms", at_most=True),
            "p99 added": Floor(limit=2.0, unit=" ms", at_most=True),
        },
        rounds=_udp_latency,
    ),
    Row(
        name="kafka-latency",
        what="kafka → kafka, 1,000 records of 1 KB a second",
        floors={"ratio of p99": Floor(limit=2.0, unit=" of the plain loop", at_most=True)},
        rounds=_kafka_latency,
    ),
    Row(
        name="paced",
        what="tcp → tcp, paced at 2 Gbit/s, default repair",
        floors={
            "lost": Floor(limit=0, at_most=True),
            "rebuilt": Floor(limit=0, at_most=True),
            "payload": Floor(limit=1.7, unit=" Gbit/s"),
        },
        rounds=_paced,
        once=True,
    ),
    Row(
        name="loss",
        what="5 % of the datagrams lost at random, 20 % repair",
        floors=_ALL,
        rounds=functools.partial(_lossy, faults=lossy.RANDOM),
        once=True,
    ),
    Row(
        name="bursts",
        what="bursts of 30 datagrams lost, 20 % repair",
        floors=_ALL,
        rounds=functools.partial(_lossy, faults=lossy.BURSTS),
        once=True,
    ),
)
"""In the order in which they are measured."""
