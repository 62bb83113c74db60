"""Where a group goes back to when its egress is dead: never forward, never into another link's work."""

from __future__ import annotations

import pytest

from gapconn.record import NO_POSITION, Batch, Records
from gapconn.sources.kafka_batches import Hand, Partition
from gapconn.sources.kafka_offsets import rewound_to


def partition(*, taken_up: int = NO_POSITION, began: int = NO_POSITION, sent: int = NO_POSITION) -> Partition:
    return Partition(place=("t", 0), handed=sent, taken_up=taken_up, began=began, sent=sent)


@pytest.mark.req("GC-DLV-24")
@pytest.mark.parametrize(
    ("of", "delivered", "expected"),
    [
        pytest.param(partition(began=0, sent=99), 60, (60, 59), id="sent in vain, in the chain"),
        pytest.param(partition(began=0, sent=99), 100, None, id="all delivered"),
        pytest.param(partition(began=0, sent=99), 500, None, id="never forward"),
        pytest.param(partition(began=40, sent=99), None, (40, NO_POSITION), id="nothing delivered, as far as is known"),
        pytest.param(partition(began=40, sent=99), 40, (40, NO_POSITION), id="nothing of this chain delivered"),
        pytest.param(partition(began=40, sent=99), 10, (40, NO_POSITION), id="what is before is another link's"),
        pytest.param(partition(taken_up=39, began=40, sent=99), 10, (10, 9), id="an earlier run of this link"),
        pytest.param(partition(taken_up=39, began=40, sent=99), 70, (70, 69), id="this run of this link"),
        pytest.param(partition(taken_up=39), 30, (30, 29), id="a restart that has sent nothing yet"),
        pytest.param(partition(taken_up=39), 40, None, id="a restart, and all was delivered"),
        pytest.param(partition(taken_up=39), None, None, id="a restart, and nothing is known"),
        pytest.param(partition(began=40), 10, None, id="read, and nothing was sent"),
        pytest.param(partition(), 10, None, id="nothing was read"),
        pytest.param(partition(began=0, sent=9), 0, (0, NO_POSITION), id="from the beginning"),
    ],
)
def test_where_it_goes_on(of: Partition, delivered: int | None, expected: tuple[int, int] | None) -> None:
    assert rewound_to(of, delivered) == expected


def test_what_was_rewound_does_not_count_as_sent_any_more() -> None:
    of = partition(began=0, sent=9)
    hand = Hand(batch=Batch(parts=[Records(stream="t", positions=[10], values=[b""])]), partitions=[of])
    hand.note_sent()
    assert of.sent == 10
    of.owned = False
    of.sent = 4
    hand.note_sent()
    assert of.sent == 4
