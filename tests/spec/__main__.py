"""`python -m tests.spec` writes again what is generated in `spec/`. The tests beside it check that it is current."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.spec.fec_vectors import codes
from tests.spec.frame_vectors import frames
from tests.spec.message_vectors import cuts, messages
from tests.spec.requirements import REQUIREMENTS_JSON, read_all, untested
from tests.spec.requirements import as_json as requirements_as_json
from tests.spec.tables import SESSION_MD, with_tables
from tests.spec.vectors import FILES, VECTORS, as_json


def vector_files() -> Iterator[tuple[Path, str]]:
    """The vectors and their schemas, as they ought to be."""
    for name, content in (("frames", frames()), ("messages", messages()), ("cuts", cuts()), ("fec", codes())):
        yield VECTORS / f"{name}.json", as_json(content)
        yield VECTORS / f"{name}.schema.json", as_json(msgspec.json.schema(FILES[name]))


def main() -> int:
    """Write the files. What writing cannot repair is printed, and the exit code is then 1."""
    VECTORS.mkdir(exist_ok=True)
    for path, text in vector_files():
        path.write_text(text)
    SESSION_MD.write_text(with_tables(SESSION_MD.read_text()))
    requirements, problems = read_all()
    REQUIREMENTS_JSON.write_text(requirements_as_json(requirements))
    problems += [f"{id_} has no test" for id_ in untested(requirements)]
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
