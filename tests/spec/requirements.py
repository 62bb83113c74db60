"""The requirements of `spec/*.md` and the tests that are marked with them, both read as text.

Marks are collected from the syntax trees of the test files, not from a pytest run: so the answer is the same under
pytest-xdist, for a single test file, and for tests that the machine at hand cannot run.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import msgspec

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "spec"
REQUIREMENTS_JSON = SPEC / "requirements.json"

FILES = {
    "MOD": "model.md",
    "WIRE": "wire.md",
    "SESS": "session.md",
    "DLV": "delivery.md",
    "RPR": "repair.md",
    "RPT": "repeats.md",
    "TIME": "timers.md",
    "LIM": "limits.md",
    "PACE": "limits.md",
    "COMP": "compression.md",
    "FEC": "fec.md",
    "SEC": "security.md",
    "ONCE": "exactly_once.md",
}
"""Where the requirements of each area are."""

PLANNED_FILES = {"fec.md", "security.md"}
"""Files that may specify what this release does not implement."""

_ID = re.compile(r"GC-([A-Z]+)-([1-9][0-9]*)")
_MARKER = re.compile(r"\*\*\[(GC-[A-Z]+-[1-9][0-9]*)\]\*\*( \*\(planned\)\*)?\s*")
_LEVELS = ("MUST", "SHOULD", "MAY")


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """One normative paragraph of the specification."""

    id: str
    level: str
    """MUST, SHOULD or MAY: the strongest word in it."""
    planned: bool
    file: str
    text: str
    tests: list[str] = []
    """Node ids of the tests that are marked with it."""


@attrs.frozen
class Specification:
    """What was read, and what is wrong with it, one sentence each."""

    requirements: list[Requirement]
    problems: list[str]


@attrs.frozen
class Marks:
    """Marked tests by requirement id, and what is wrong with the marks, one sentence each."""

    tests: dict[str, list[str]]
    problems: list[str]


def read_specification(texts: dict[str, str]) -> Specification:
    """The requirements in Markdown `texts`, by file name. README.md explains the words and is not normative."""
    requirements: dict[str, Requirement] = {}
    problems: list[str] = []
    for file, text in sorted(texts.items()):
        if file == "README.md":
            continue
        for paragraph in _paragraphs(text):
            marker = _MARKER.match(paragraph)
            body = paragraph[marker.end() :] if marker else paragraph
            level = next((word for word in _LEVELS if re.search(rf"\b{word}\b", body)), None)
            if _MARKER.search(body):
                problems.append(f"{file}: an id that does not begin a paragraph: {body!r}")
            if marker is None:
                if level in ("MUST", "SHOULD") or "SHALL" in body:
                    problems.append(f"{file}: a normative sentence without an id: {body!r}")
                continue
            found = Requirement(
                id=marker[1], level=level or "", planned=bool(marker[2]), file=file, text=" ".join(body.split())
            )
            problems += _problems_of(found)
            if found.id in requirements:
                problems.append(f"{file}: {found.id} is used twice")
            requirements[found.id] = found
    return Specification(sorted(requirements.values(), key=_place), problems)


def read_marks(texts: dict[str, str]) -> Marks:
    """The `pytest.mark.req(...)` of test modules, by path: on functions, on classes, in `pytestmark`, on parameters."""
    tests: dict[str, list[str]] = defaultdict(list)
    problems: list[str] = []
    for path, text in sorted(texts.items()):
        tree = ast.parse(text, path)
        attributed = 0
        for node, expressions in _marked(tree, path):
            for call in (call for expression in expressions for call in _calls(expression)):
                attributed += 1
                for argument in call.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        tests[argument.value].append(node)
                    else:
                        problems.append(f"{node}: an id that is not a plain string")
                if not call.args:
                    problems.append(f"{node}: a mark without an id")
        if attributed != sum(1 for _ in _calls(tree)):
            problems.append(f"{path}: a mark that is on no test")
    return Marks({id_: sorted(set(nodes)) for id_, nodes in tests.items()}, problems)


def read_all() -> tuple[list[Requirement], list[str]]:
    """The requirements of this repository with their tests; and all that is wrong, but for what has no test yet."""
    specification = read_specification({path.name: path.read_text() for path in SPEC.glob("*.md")})
    marks = read_marks(_sources(ROOT / "tests"))
    known = {requirement.id for requirement in specification.requirements}
    problems = [*specification.problems, *marks.problems]
    problems += [
        f"{node}: marked with the unknown {id_}"
        for id_ in sorted(marks.tests.keys() - known)
        for node in marks.tests[id_]
    ]
    cited = {**_sources(ROOT / "gapconn"), **{f"spec/{path.name}": path.read_text() for path in SPEC.glob("*.*")}}
    problems += [
        f"{path}: cites the unknown {match[0]}"
        for path, text in cited.items()
        for match in _ID.finditer(text)
        if match[0] not in known
    ]
    linked = [msgspec.structs.replace(r, tests=marks.tests.get(r.id, [])) for r in specification.requirements]
    return linked, problems


def untested(requirements: Iterable[Requirement]) -> list[str]:
    """Ids of requirements that ought to have a test and have none."""
    return [r.id for r in requirements if r.level == "MUST" and not r.planned and not r.tests]


def as_json(requirements: list[Requirement]) -> str:
    """`requirements.json`."""
    return msgspec.json.format(msgspec.json.encode({"requirements": requirements}), indent=2).decode() + "\n"


def _problems_of(requirement: Requirement) -> Iterator[str]:
    area = requirement.id.split("-")[1]
    if not requirement.level:
        yield f"{requirement.file}: {requirement.id} has none of the words {', '.join(_LEVELS)}"
    if FILES.get(area) != requirement.file:
        yield f"{requirement.file}: {requirement.id} belongs to {FILES.get(area, 'no file')}"
    if requirement.planned and requirement.file not in PLANNED_FILES:
        yield f"{requirement.file}: {requirement.id} is planned; all of this file is implemented"


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs outside code blocks; each row of a table is one."""
    outside = "".join(text.split("```")[::2])
    for paragraph in re.split(r"\n\s*\n|\n(?=\|)", outside):
        if paragraph.strip():
            yield paragraph.strip()


def _place(requirement: Requirement) -> tuple[int, int]:
    _, area, number = requirement.id.split("-")
    return list(FILES).index(area) if area in FILES else len(FILES), int(number)


def _sources(directory: Path) -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(directory.rglob("*.py"))}


def _marked(tree: ast.Module, path: str) -> Iterator[tuple[str, list[ast.expr]]]:
    """Node ids of what pytest collects, with the expressions that may hold its marks."""
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) if name == "pytestmark":
                yield path, [statement.value]
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("Test"):
                yield f"{path}::{name}", [statement.value]
            case ast.FunctionDef() | ast.AsyncFunctionDef() if statement.name.startswith("test"):
                yield f"{path}::{statement.name}", statement.decorator_list
            case ast.ClassDef() if statement.name.startswith("Test"):
                node = f"{path}::{statement.name}"
                yield node, statement.decorator_list
                for method in statement.body:
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and method.name.startswith("test"):
                        yield f"{node}::{method.name}", method.decorator_list


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.req":
            yield node
