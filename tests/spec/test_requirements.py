"""The requirements of this repository are numbered, tested and listed; and the checker that says so can say no."""

from __future__ import annotations

import textwrap

import pytest

from tests.spec.requirements import (
    REQUIREMENTS_JSON,
    Requirement,
    as_json,
    read_all,
    read_marks,
    read_specification,
    untested,
)


def test_the_specification_and_the_marks_are_sound() -> None:
    _, problems = read_all()
    assert not problems


def test_every_must_has_a_test() -> None:
    requirements, _ = read_all()
    assert not untested(requirements)


def test_the_list_of_requirements_is_current() -> None:
    requirements, _ = read_all()
    assert REQUIREMENTS_JSON.read_text() == as_json(requirements), "run `python -m tests.spec`"


def test_a_requirement_is_read_with_its_level_and_text() -> None:
    read = read_specification(
        {"fec.md": "# FEC\n\n**[GC-FEC-1]** *(planned)* A sender\nSHOULD, and MAY.\n\nNo more.\n"}
    )
    assert read.requirements == [
        Requirement(id="GC-FEC-1", level="SHOULD", planned=True, file="fec.md", text="A sender SHOULD, and MAY.")
    ]
    assert not read.problems


def test_requirements_are_listed_by_area_and_number() -> None:
    read = read_specification(
        {
            "wire.md": "**[GC-WIRE-10]** MAY.\n\n**[GC-WIRE-9]** MAY.",
            "model.md": "**[GC-MOD-1]** MAY.",
            "README.md": "MUST",
        }
    )
    assert [r.id for r in read.requirements] == ["GC-MOD-1", "GC-WIRE-9", "GC-WIRE-10"]
    assert not read.problems


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("wire.md", "A receiver MUST drop it.", "without an id"),
        ("wire.md", "A receiver SHOULD NOT.", "without an id"),
        ("wire.md", "| a | b |\n| --- | --- |\n| x | MUST be so |", "without an id"),
        ("wire.md", "**[GC-WIRE-1]** MUST.\n\nIt MUST.", "without an id"),
        ("wire.md", "**[GC-WIRE-1]** MUST.\n\n**[GC-WIRE-1]** MUST.", "used twice"),
        ("wire.md", "**[GC-WIRE-1]** It drops.", "none of the words"),
        ("wire.md", "**[GC-WIRE-1]** It must.", "none of the words"),
        ("wire.md", "**[GC-WIRE-1]** MUST. **[GC-WIRE-2]** MUST.", "does not begin a paragraph"),
        ("wire.md", "Text. **[GC-WIRE-2]** it does.", "does not begin a paragraph"),
        ("wire.md", "**[GC-DLV-1]** MUST.", "belongs to delivery.md"),
        ("wire.md", "**[GC-NEW-1]** MUST.", "belongs to no file"),
        ("wire.md", "**[GC-WIRE-1]** *(planned)* MUST.", "is planned"),
    ],
)
def test_what_is_wrong_with_a_specification_is_said(file: str, text: str, problem: str) -> None:
    (found,) = read_specification({file: text}).problems
    assert problem in found


def test_code_blocks_are_not_normative() -> None:
    assert not read_specification({"wire.md": "```\nMUST\n\nMUST\n```\n\ntext\n\n```\nMUST\n```\n"}).problems


def test_marks_are_found_wherever_pytest_finds_them() -> None:
    module = textwrap.dedent(
        '''
        import pytest
        pytestmark = [pytest.mark.req("GC-A-1")]

        @pytest.mark.req("GC-A-2", "GC-A-3")
        async def test_a(): ...

        @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.req("GC-A-4"))])
        def test_b(x): ...

        @pytest.mark.req("GC-A-5")
        class TestC:
            @pytest.mark.req("GC-A-6")
            def test_d(self): ...

        TestE = pytest.mark.req("GC-A-7")(Machine.TestCase)
        """pytest.mark.req("GC-A-8")"""
        '''
    )
    marks = read_marks({"tests/x.py": module})
    assert marks.tests == {
        "GC-A-1": ["tests/x.py"],
        "GC-A-2": ["tests/x.py::test_a"],
        "GC-A-3": ["tests/x.py::test_a"],
        "GC-A-4": ["tests/x.py::test_b"],
        "GC-A-5": ["tests/x.py::TestC"],
        "GC-A-6": ["tests/x.py::TestC::test_d"],
        "GC-A-7": ["tests/x.py::TestE"],
    }
    assert not marks.problems


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ('@pytest.mark.req("GC-A-1")\ndef helper(): ...', "on no test"),
        ('class TestA:\n  @pytest.mark.req("GC-A-1")\n  def helper(self): ...', "on no test"),
        ("@pytest.mark.req(ID)\ndef test_a(): ...", "not a plain string"),
        ("@pytest.mark.req()\ndef test_a(): ...", "without an id"),
    ],
)
def test_what_is_wrong_with_marks_is_said(module: str, problem: str) -> None:
    (found,) = read_marks({"tests/x.py": module}).problems
    assert problem in found


def test_only_a_must_of_this_release_needs_a_test() -> None:
    def requirement(number: int, level: str, *, planned: bool = False, tests: tuple[str, ...] = ()) -> Requirement:
        return Requirement(
            id=f"GC-FEC-{number}", level=level, planned=planned, file="fec.md", text="", tests=list(tests)
        )

    assert untested(
        [
            requirement(1, "MUST"),
            requirement(2, "MUST", tests=("tests/x.py::test_a",)),
            requirement(3, "MUST", planned=True),
            requirement(4, "SHOULD"),
            requirement(5, "MAY"),
        ]
    ) == ["GC-FEC-1"]
