"""What is said of each state of the counters: the place, how bad it is, how many, and what to do next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gapconn.why.counts import (
    EgressCounts,
    Host,
    IngressCounts,
    JournalTotal,
    Other,
    as_json,
    from_status,
)
from gapconn.why.findings import _SINK_LOSSES, PAGE, findings

ROOT = Path(__file__).parent.parent.parent
KIB, MIB = 1024, 1024 * 1024
RIVAL = Other(reason="conflict", identity=9, came_from="192.0.2.11:4000", datagrams=12, last_heard_s=0.2)
FOREIGN = Other(reason="foreign_link", identity=77, came_from="192.0.2.12:4000", datagrams=5, last_heard_s=0.2)
SMALL = {"buffer_bytes": 208 * KIB, "buffer_wanted_bytes": 32 * MIB}
OPEN = JournalTotal(entries=1, open_entries=1, messages=4)
ETH0 = {"eth0": {"rx_missed_errors": 9, "rx_crc_errors": 0}}


def egress(**counts: Any) -> EgressCounts:
    given = {"link_id": 1, "epoch": 5, "listens_on": "192.0.2.20:7400", "sink_type": "kafka", **counts}
    return EgressCounts(**given)


def ingress(**counts: Any) -> IngressCounts:
    given = {"link_id": 1, "epoch": 5, "sends_to": "192.0.2.20:7400", "source_type": "udp", **counts}
    return IngressCounts(**given)


CASES: dict[str, tuple[EgressCounts | None, IngressCounts | None, list[tuple[str, str, int, list[str]]]]] = {
    "all is well": (egress(), ingress(), []),
    "the receive buffer is small": (
        egress(missed=1204, missed_here=1204, packets_dropped=40, **SMALL),
        None,
        [
            ("egress-kernel", "loss", 1204, [
                "the kernel of the egress's host dropped 1,204 datagrams (in 40 packets) because the receive buffer of"
                " 208 KiB was full", "net.core.rmem_max=33554432", "CAP_NET_ADMIN",
            ]),
        ],
    ),
    "the receive buffer is as large as asked": (
        egress(missed=7, missed_here=7, packets_dropped=7, buffer_bytes=MIB, buffer_wanted_bytes=MIB),
        None,
        [("egress-kernel", "loss", 7, ["receive buffer of 1 MiB was full", "lower link.rate"])],
    ),
    "the kernel found wrong checksums": (
        egress(missed=7, missed_here=7, packets_dropped=7, host=Host(udp={"InCsumErrors": 7, "RcvbufErrors": 0})),
        None,
        [("egress-kernel", "loss", 7, ["their UDP checksum was wrong", "ethtool -K"])],
    ),
    "what the kernel dropped is not missing": (
        egress(packets_dropped=7, **SMALL),
        None,
        [("egress-kernel", "note", 7, ["nothing of the link is missing for that"])],
    ),
    "the kernel does not say behind what": (
        egress(missed=50, packets_dropped=7, tells_drops=False, **SMALL),
        None,
        [("unknown", "loss", 43, ["cannot be said"]), ("egress-kernel", "loss", 7, ["208 KiB"])],
    ),
    "the interface overran": (
        egress(missed=20, host=Host(coincident=9, interfaces=ETH0)),
        ingress(),
        [
            ("link", "loss", 11, ["11 datagrams were lost on the link"]),
            ("egress-interface", "loss", 9, ["at most 9", "eth0 dropped 9 (rx_missed_errors 9)", "ethtool -G"]),
        ],
    ),
    "the interface got damaged frames": (
        egress(missed=2, host=Host(coincident=2, interfaces={"eth0": {"rx_crc_errors": 2}})),
        None,
        [("egress-interface", "loss", 2, ["cable"])],
    ),
    "the queue behind the interface was full": (
        egress(missed=2, host=Host(coincident=2, backlog_dropped=2, interfaces={"eth0": {"rx_dropped": 2}})),
        None,
        [("egress-interface", "loss", 2, ["netdev_max_backlog"])],
    ),
    "the interface dropped what nobody missed": (egress(host=Host(interfaces=ETH0)), None, []),
    "the link lost them, the ingress was not asked": (
        egress(missed=11),
        None,
        [("link", "loss", 11, ["or on the ingress's host, which was not asked", "lower link.rate"])],
    ),
    "the queue of the ingress's interface was full": (
        egress(missed=11),
        ingress(host=Host(udp={"SndbufErrors": 11})),
        [("ingress-kernel", "loss", 11, ["full interface queue", "txqueuelen"])],
    ),
    "the ingress's interface dropped": (
        egress(missed=11),
        ingress(host=Host(interfaces={"eth1": {"tx_dropped": 100}})),
        [("ingress-interface", "loss", 11, ["at most 11", "eth1 dropped 100"])],
    ),
    "datagrams came damaged": (
        egress(
            missed=10,
            missed_unreadable=10,
            dropped={"bad_check": 9, "bad_magic": 1, "duplicate": 50},
            others=[Other(reason="bad_check", came_from="192.0.2.1:9", datagrams=9)],
        ),
        None,
        [("unreadable", "loss", 10, ["(bad_check 9, bad_magic 1, from 192.0.2.1:9)", "gap device"])],
    ),
    "garbage came beside the link": (
        egress(dropped={"bad_magic": 500, "malformed": 1}),
        None,
        [("unreadable", "note", 501, ["nothing is missing for them", "firewall"])],
    ),
    "repair symbols were enough": (
        egress(missed=4, rebuilt=3),
        ingress(),
        [("link", "loss", 4, []), ("repair-symbols", "note", 3, ["their data is not lost"])],
    ),
    "nothing is heard": (
        egress(state="interrupted", silent_s=12.3),
        None,
        [("silence", "alarm", 0, ["nothing is heard of the ingress for 12.3 s", "is the ingress running?"])],
    ),
    "nothing is heard although it sends": (
        egress(state="interrupted", silent_s=12.3),
        ingress(sent=500),
        [("silence", "alarm", 0, ["although it sends (500 datagrams to 192.0.2.20:7400", "neighbour entry"])],
    ),
    "nothing is heard of an ingress that ended": (
        egress(state="waiting", silent_s=3.0),
        ingress(state="closed"),
        [("silence", "alarm", 0, ["the ingress is closed: start it"])],
    ),
    "an egress that has just been started": (
        egress(state="waiting", silent_s=1.0),
        None,
        [("silence", "note", 0, ["for 1.0 s"])],
    ),
    "the ends of two links": (
        egress(),
        ingress(link_id=2),
        [("pairing", "alarm", 0, ["link id 1, the ingress of 2", "gapconn check"])],
    ),
    "the egress follows another ingress": (
        egress(),
        ingress(epoch=6),
        [("conflict", "alarm", 0, ["follows session 5", "sends 6"])],
    ),
    "a second ingress sends": (
        egress(others=[RIVAL], conflicts=1, alarms={"conflict": "two"}, heard_from="192.0.2.10:4000"),
        ingress(),
        [
            ("conflict", "alarm", 12, [
                "a second ingress (session 9) sends from 192.0.2.11:4000 (12 datagrams, last heard 0.2 s ago)",
                "session 5 from 192.0.2.10:4000 keeps the link", "stop the one that is not wanted",
            ]),
        ],
    ),
    "a second ingress has sent": (
        egress(others=[Other(reason="stale_session", identity=3, datagrams=2, last_heard_s=60.0)], conflicts=1),
        None,
        [("conflict", "note", 2, ["(session 3) sent (2 datagrams, last heard 60.0 s ago)"])],
    ),
    "the last words of the session before are no conflict": (
        egress(others=[Other(reason="stale_session", identity=3, datagrams=2, last_heard_s=0.1)]),
        None,
        [],
    ),
    "a foreign link sends": (
        egress(others=[FOREIGN]),
        None,
        [("foreign-link", "alarm", 5, ["(id 77) sends from 192.0.2.12:4000", "nothing of this link is lost"])],
    ),
    "memory ran out": (
        egress(messages_lost={"overflow": 3}, dropped={"over_limit": 8}),
        None,
        [("memory", "loss", 8, ["message_bytes_max"]), ("memory", "loss", 3, ["link.reassembly_bytes_max"])],
    ),
    "messages are lost by other causes": (
        egress(messages_lost={"gap": 3, "before_join": 1, "damaged": 4}, messages_refused={"damaged": 1}),
        None,
        [
            ("messages", "loss", 5, ["5 messages are lost, cause damaged"]),
            ("messages", "loss", 3, ["cause gap", "link.fec.repair"]),
            ("messages", "loss", 1, ["cause before_join"]),
        ],
    ),
    "messages were lost and came again": (
        egress(
            messages_lost={"gap": 3, "overflow": 5, "while_away": 9},
            journal={
                "gap": JournalTotal(entries=2, open_entries=1, repaired_entries=1),
                "overflow": JournalTotal(entries=2, repaired_entries=1),  # the other one is closed, and gone
                "while_away": JournalTotal(entries=4, repaired_entries=4),
            },
        ),
        None,
        [
            ("memory", "loss", 5, ["5 messages are lost, cause overflow"]),
            ("messages", "loss", 3, ["3 messages are lost, cause gap"]),
            ("messages", "note", 9, ["9 messages were lost, cause while_away, and came again", "gaps list FILE --all"]),
            ("journal", "note", 1, ["entries 1"]),
        ],
    ),
    "the state cannot be stored": (
        egress(alarms={"state_disk_full": "the state cannot be stored"}),
        None,
        [("journal", "alarm", 0, ["the state cannot be stored", "link.state_directory"])],
    ),
    "the spool is full": (
        egress(
            messages_refused={"refused": 4},
            spool_trouble="spool.max_bytes are used",
            alarms={"spool_full": "the spool takes nothing: it is full"},
        ),
        None,
        [
            ("sink", "alarm", 0, ["the spool takes nothing: it is full"]),
            ("sink", "loss", 4, ["refused", "(spool.max_bytes are used)", "bring the target back"]),
        ],
    ),
    "the sink cannot deliver": (
        egress(sink_losses={"record_rejected": 2}, sink_stalled_s=30.0),
        None,
        [
            ("sink", "alarm", 0, ["the kafka sink has accepted nothing for 30 s"]),
            ("sink", "loss", 2, ["2 times: record_rejected"]),
        ],
    ),
    "the target of datagrams refused them": (
        egress(sink_type="udp", sink_events={"refused": 12, "null_values": 2, "send_failed": 5}),
        None,
        [
            ("sink", "loss", 12, ["12 datagrams at the least were refused by the target", "start the receiver"]),
            ("sink", "loss", 2, ["2 records have no value (tombstones)", "kafka"]),
        ],
    ),
    "the sink takes something else": (
        egress(sink_type="tcp", sink_events={"records_refused": 3, "null_values": 2}),
        None,
        [("sink", "loss", 3, ["a tcp sink takes byte streams", "gapconn check"])],
    ),
    "the journal is not empty": (
        egress(journal={"gap": JournalTotal(entries=3, open_entries=2, positions_missing=70)}, records_filtered=6),
        None,
        [
            ("source", "note", 6, ["left out by the ingress on purpose"]),
            ("journal", "note", 2, ["entries 2", "missing positions 70", "gapconn resend", "if that can be read a"]),
        ],
    ),
    "the journal is not empty, and the source can be read again": (
        egress(journal={"gap": OPEN}),
        ingress(cannot_resend=""),
        [("journal", "note", 1, ["gapconn resend FILE --gaps LIST at the source"])],
    ),
    "the journal is not empty, and the source cannot be read again": (
        egress(journal={"gap": OPEN}),
        ingress(cannot_resend="once only: have it sent once more"),
        [("journal", "note", 1, ["once only: have it sent once more"])],
    ),
    "the source lost": (
        None,
        ingress(source_events={"kernel_dropped": 9, "too_large": 0, "of_no_interest": 5}, refusals={"ENOBUFS": 2}),
        [
            ("source", "loss", 9, ["9 datagrams were dropped by the kernel of the ingress's host", "receive_buffer"]),
            ("ingress-kernel", "note", 2, ["(ENOBUFS 2)", "nothing is lost by that"]),
        ],
    ),
    "a topic expired": (
        None,
        ingress(source_type="kafka", source_events={"records_expired": 9, "kernel_dropped": 5}),
        [("source", "loss", 9, ["9 offsets were deleted by retention", "retention.ms"])],
    ),
    "nothing is known": (None, None, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_said(case: str) -> None:
    of_egress, of_ingress, expected = CASES[case]
    found = findings(of_egress, of_ingress)
    assert [(each.place, each.level, each.count) for each in found] == [tuple(each[:3]) for each in expected]
    for finding, (*_, words) in zip(found, expected, strict=True):
        text = f"{finding.what}; {finding.do}"
        for word in words:
            assert word in text


def resend_advice(*, of_file: str | None, of_ingress: str | None) -> str:
    (found,) = findings(egress(journal={"gap": OPEN}), ingress(cannot_resend=of_ingress), cannot_resend=of_file)
    return found.do


def test_what_the_ingress_says_of_sending_again_goes_before_what_the_file_says() -> None:
    assert resend_advice(of_file="not by the file", of_ingress=None) == "not by the file"
    assert resend_advice(of_file="not by the file", of_ingress="not by it") == "not by it"
    assert "gapconn resend FILE --gaps LIST" in resend_advice(of_file="not by the file", of_ingress="")
    assert "if that can be read" not in resend_advice(of_file="", of_ingress=None)


NO_LOSS = {
    # It reached the target, is tried again, or is left out on purpose.
    "answer_bytes_discarded", "bytes_written", "close_timeouts", "connect_failed", "directory_syncs_failed",
    "existing_files_kept", "files_late", "leftovers_removed", "mtimes_not_set", "producer_failed", "progress_not_read",
    "request_failed", "request_rejected", "send_failed", "streams_aborted", "streams_ended", "streams_mixed",
    "timestamp_changed", "transaction_aborted", "transaction_committed", "write_retries",
    # The gap journal has it: from `inlet.lost`, or from before.
    "bytes_lost", "connections_refused", "files_lost", "holes", "late_streams_unusable", "late_unusable",
    "record_rejected", "streams_broken", "too_large",
    # There is no target.
    "records_damaged", "records_duplicate", "records_missing", "records_reordered",
}  # fmt: skip
"""What sinks count beside losses of which nothing else tells."""


def test_whatever_a_sink_counts_is_told_or_known_to_be_no_loss() -> None:
    """Who lets a sink count something new, decides here or in the findings what it is."""
    pattern = re.compile(r'''counters\["(\w+)"\]|_note\(\s*\w+,\s*"(\w+)"|_note\(\s*"\w+",\s*"(\w+)"''')
    counted = {
        (path.stem.partition("_")[0], "".join(groups))
        for path in (ROOT / "gapconn" / "sinks").glob("*.py")
        for groups in pattern.findall(path.read_text())
    }
    assert set(_SINK_LOSSES) <= counted
    assert {event for _, event in counted - set(_SINK_LOSSES)} == NO_LOSS


def test_every_place_is_explained() -> None:
    page = (ROOT / PAGE).read_text()
    anchors = {re.sub(r"[^a-z]+", "-", heading.lower()) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    places = {place for _, _, expected in CASES.values() for place, *_ in expected}
    assert len(places) > 12
    assert places <= anchors


@pytest.mark.parametrize("counts", [counts for case in CASES.values() for counts in case[:2] if counts is not None])
def test_the_counts_travel_whole(counts: EgressCounts | IngressCounts) -> None:
    assert from_status(type(counts), {"losses": as_json(counts)}) == counts


def test_counts_of_other_versions() -> None:
    assert from_status(EgressCounts, {"losses": {"missed": 3, "new_in_2027": []}}) == EgressCounts(missed=3)
    with pytest.raises(ValueError, match=r"version 0\.0\.1 of gapconn does not say where data is lost"):
        from_status(EgressCounts, {"version": "0.0.1"})
    with pytest.raises(ValueError, match="cannot be understood"):
        from_status(EgressCounts, {"losses": {"missed": "many"}})
