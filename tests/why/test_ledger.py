"""Every missing datagram is put to exactly one place, whatever the counters say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.why.counts import EgressCounts, Host, IngressCounts
from gapconn.why.ledger import Ledger, ledger

COUNT = st.integers(0, 1000)
SENDER = Host(udp={"SndbufErrors": 30}, interfaces={"eth0": {"tx_dropped": 20}})
UNREAD = EgressCounts(missed=100, tells_drops=False, packets_dropped=0)


@pytest.mark.parametrize(
    ("egress", "ingress", "expected"),
    [
        (EgressCounts(), None, Ledger(missed=0)),
        (EgressCounts(missed=100), None, Ledger(missed=100, link=100)),
        (
            EgressCounts(missed=100, missed_unreadable=5, missed_here=60),
            None,
            Ledger(missed=100, unreadable=5, egress_kernel=60, link=35),
        ),
        (
            EgressCounts(missed=100, missed_here=60, host=Host(coincident=30, interfaces={"eth0": {"rx_dropped": 99}})),
            None,
            Ledger(missed=100, egress_kernel=60, egress_interface=30, link=10),
        ),
        (
            EgressCounts(missed=100, missed_here=60, host=Host(coincident=99)),
            IngressCounts(host=SENDER),
            Ledger(missed=100, egress_kernel=60, egress_interface=40),
        ),
        (
            EgressCounts(missed=100, missed_here=10),
            IngressCounts(host=SENDER),
            Ledger(missed=100, egress_kernel=10, ingress_kernel=30, ingress_interface=20, link=40),
        ),
        # A kernel that does not say behind what it dropped: its packets are the least that it dropped.
        (UNREAD, None, Ledger(missed=100, link=100)),
        (
            EgressCounts(missed=100, tells_drops=False, packets_dropped=7),
            None,
            Ledger(missed=100, egress_kernel=7, unknown=93),
        ),
    ],
)
def test_the_places(egress: EgressCounts, ingress: IngressCounts | None, expected: Ledger) -> None:
    assert ledger(egress, ingress) == expected


@given(
    missed=COUNT,
    unreadable=COUNT,
    here=COUNT,
    packets=COUNT,
    coincident=COUNT,
    tells=st.booleans(),
    sender=st.none() | st.tuples(COUNT, COUNT),
)
def test_it_adds_up(
    *,
    missed: int,
    unreadable: int,
    here: int,
    packets: int,
    coincident: int,
    tells: bool,
    sender: tuple[int, int] | None,
) -> None:
    egress = EgressCounts(
        missed=missed,
        missed_unreadable=unreadable,
        missed_here=here,
        packets_dropped=packets,
        tells_drops=tells,
        host=Host(coincident=coincident),
    )
    ingress = None
    if sender is not None:
        udp, interface = {"SndbufErrors": sender[0]}, {"eth0": {"tx_dropped": sender[1]}}
        ingress = IngressCounts(host=Host(udp=udp, interfaces=interface))
    book = ledger(egress, ingress)
    assert sum(book.parts.values()) == missed
    assert min(book.parts.values()) >= 0
    assert book.link == 0 or book.unknown == 0
