"""A link that failed in silence is told from a time without data."""

from __future__ import annotations

from gapconn.dedup.links import TRAIL_MAX, Alarm, LinkBook, Trail


def book() -> LinkBook:
    return LinkBook.of(["a", "b"], silent_after_s=30, lag_after_s=300, lag_offsets_max=1000)


def brought(book: LinkBook, link: str, first: int, repeats: int = 0, *, at: float) -> None:
    book.note(link, records=first + repeats, first=first, late=0, unidentified=0, now_s=at)


def test_a_link_that_brings_nothing_while_the_other_does_is_silent_until_it_brings_something() -> None:
    links = book()
    brought(links, "a", 10, at=0)
    brought(links, "b", 0, 10, at=1)
    brought(links, "a", 5, at=10)
    assert list(links.look(39)) == []
    [(link, alarm, sentence)] = links.look(40)
    assert (link, alarm) == ("b", Alarm.SILENT)
    assert "link b has delivered nothing for 30 s" in (sentence or "")
    assert "5 new records" in (sentence or "")
    assert links.waited_for() == ["a"]
    assert list(links.look(41)) == [], "an alarm is raised once"
    brought(links, "b", 0, 1, at=42)
    assert list(links.look(42)) == [("b", Alarm.SILENT, None)]
    assert links.waited_for() == ["a", "b"]


def test_what_a_link_lost_in_the_middle_is_no_silence() -> None:
    links, trail = book(), Trail(base=-1)
    trail.brought("b", 10)
    brought(links, "b", 8, at=0)
    trail.brought("a", 10)
    brought(links, "a", 3, 8, at=1)
    assert list(links.look(1000, [trail])) == [], "b is behind in nothing"
    trail.brought("a", 11)
    assert list(links.look(1001, [trail])) == []
    assert [alarm for _, alarm, _ in links.look(1031, [trail])] == [Alarm.SILENT]


def test_no_data_at_all_is_no_alarm() -> None:
    links = book()
    brought(links, "a", 1, at=0)
    brought(links, "b", 0, 1, at=0.5)
    assert list(links.look(100_000)) == []


def test_repeats_of_the_other_link_are_nothing_that_was_missed() -> None:
    links = book()
    brought(links, "b", 1, at=0)
    brought(links, "a", 0, 1, at=10)
    assert list(links.look(1000)) == []
    assert links.links["a"].repeats == 1


def test_an_own_outage_makes_no_link_silent() -> None:
    links = book()
    brought(links, "a", 1, at=0)
    links.begin()
    assert list(links.look(100)) == []


def test_lag_in_offsets_and_in_time() -> None:
    links, trail = book(), Trail(base=99)
    trail.brought("a", 100)
    trail.brought("b", 100)
    for second in range(1, 400):
        trail.brought("a", 100 + second)
        trail.brought("b", 100 + max(second - 10, 0) if second < 50 else 140)
        list(links.look(second, [trail]))
    assert links.links["a"].lag_offsets == 0
    assert links.links["b"].lag_offsets == 499 - 140
    assert 340 <= links.links["b"].lag_s <= 360
    assert list(links.links["b"].alarms) == [Alarm.LAGGING]
    trail.brought("b", 499)
    assert list(links.look(400, [trail])) == [("b", Alarm.LAGGING, None)]
    assert links.links["b"].lag_s == 0


def test_the_age_of_a_long_lag_is_right_although_marks_are_few() -> None:
    trail = Trail(base=-1)
    trail.brought("b", 0)
    for second in range(10 * TRAIL_MAX):
        trail.brought("a", second)
        trail.mark(second, ["a", "b"])
    assert trail.lag("b", 10 * TRAIL_MAX) == (10 * TRAIL_MAX - 1, 10 * TRAIL_MAX - 1)


def test_what_all_links_have_passed() -> None:
    trail = Trail(base=9)
    trail.brought("a", 20)
    assert trail.passed(["a", "b"]) == -1
    assert trail.passed(["a"]) == 20
    trail.brought("b", 15)
    trail.brought("b", 12)
    assert trail.passed(["a", "b"]) == 15
    assert trail.passed([]) == 20
