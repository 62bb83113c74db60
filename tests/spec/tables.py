"""The state tables in `spec/session.md`: rendered from the code, between their markers."""

from __future__ import annotations

import re

from gapconn.protocol.states import receiver_table_markdown, sender_table_markdown
from tests.spec.requirements import SPEC

SESSION_MD = SPEC / "session.md"


def with_tables(text: str) -> str:
    """The text of session.md with the tables as the code has them."""
    for name, table in (("sender", sender_table_markdown()), ("receiver", receiver_table_markdown())):
        between = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
        text, count = between.subn(rf"\1\n{table}\n\2", text)
        if count != 1:
            raise ValueError(f"session.md has {count} places for the table {name!r}")
    return text
