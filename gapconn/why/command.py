"""`gapconn why`: ask the ends that run, and say where data was lost and what to do."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from gapconn.config import Pair, ip_of
from gapconn.errors import LinkError
from gapconn.gaps import entries_of
from gapconn.units import Address
from gapconn.why.counts import EgressCounts, IngressCounts, JournalTotal, from_status, journal_totals
from gapconn.why.findings import Finding, findings
from gapconn.why.ledger import Ledger, ledger

ANSWER_LIMIT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 16 << 20

_PLACES: Final = {
    "unreadable": "arrived damaged",
    "egress_kernel": "dropped by the kernel of the egress's host",
    "egress_interface": "at most, by an interface of the egress's host",
    "ingress_kernel": "at most, by the kernel of the ingress's host",
    "ingress_interface": "at most, by an interface of the ingress's host",
    "link": "lost on the link",
    "unknown": "cannot be attributed",
}
_SIGNS: Final = {"alarm": "!!", "loss": "! ", "note": "  "}


@attrs.frozen(kw_only=True)
class Answer:
    """What was seen of a pair."""

    egress_at: Address | None = None
    egress: EgressCounts | None = None
    ingress_at: Address | None = None
    ingress: IngressCounts | None = None
    unseen: list[str] = attrs.field(factory=list)
    """What could not be seen, and why: a sentence each."""
    in_vain: list[str] = attrs.field(factory=list)
    """Which ends were named by the caller, each with its address, and could not be asked."""
    cannot_resend: str | None = None
    """As `gapconn.why.findings.findings` has it."""
    journal: dict[str, JournalTotal] | None = None
    """By cause; None where it could not be read."""

    @property
    def book(self) -> Ledger | None:
        """Where the missing datagrams are; None without an egress."""
        return None if self.egress is None else ledger(self.egress, self.ingress)

    @property
    def findings(self) -> list[Finding]:
        """The worst first."""
        return findings(self.egress, self.ingress, cannot_resend=self.cannot_resend)

    @property
    def verdict(self) -> str:
        """The worst in one sentence."""
        if self.egress is None and self.ingress is None:
            return "neither end answers: it cannot be said whether anything is lost"
        worst = next((found.what for found in self.findings if found.level != "note"), None)
        if worst is None and self.egress is None:
            worst = "the ingress lost nothing; what became of the data behind it, it cannot know"
        unasked = "".join(f"the {end} could not be asked; " for end in self.in_vain)
        return unasked + (worst or ("who was asked knows of no loss" if unasked else "nothing is missing"))


def status_of(address: Address) -> dict[str, Any]:
    """What an end says of itself.

    Raises:
        LinkError: it does not answer, or not as an end of a link does.
    """
    ip = ip_of(address.host)
    # Who listens on every address also listens on the loopback.
    host = address.host if ip is None or not ip.is_unspecified else "::1" if ip.version == 6 else "127.0.0.1"
    connection = http.client.HTTPConnection(host, address.port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        status = json.loads(answer.read(ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LinkError(f"{address} does not answer: {error}") from error
    finally:
        connection.close()
    if not isinstance(status, dict) or status.get("role") not in ("ingress", "egress"):
        raise LinkError(f"{address} answers, but is no end of a link")
    return status


def ask(
    pair: Pair,
    *,
    egress_at: Address | None = None,
    ingress_at: Address | None = None,
    cannot_resend: str | None = None,
) -> Answer:
    """Ask the ends of a pair. The admin address of the file is asked too: which end it is, shows in its answer."""
    seen: dict[str, tuple[Address, EgressCounts | IngressCounts]] = {}
    unseen: list[str] = []
    in_vain: list[str] = []
    wanted: list[tuple[Address, str | None]] = []
    wanted += [(egress_at, "egress")] if egress_at is not None else []
    wanted += [(ingress_at, "ingress")] if ingress_at is not None else []
    listen = pair.admin.listen if pair.admin is not None else None
    if listen is not None and len(wanted) < 2 and listen not in (egress_at, ingress_at):
        wanted.append((listen, None))
    for address, role in wanted:
        try:
            found, counts = _counts(pair, status_of(address))
            if role is not None and found != role:
                raise LinkError(f"{address} is the {found}, not the {role}")
            if role is not None or found not in seen:
                seen[found] = (address, counts)
        except LinkError as error:
            in_vain += [f"{role} at {address}"] if role is not None else []
            # That the other end is not where this one would be, says nothing.
            if role is not None or len(wanted) == 1:
                unseen.append(str(error))
    egress, ingress = seen.get("egress"), seen.get("ingress")
    unseen += _not_seen(egress is not None, ingress is not None)
    journal = None
    if egress is not None and isinstance(egress[1], EgressCounts):
        journal = egress[1].journal
    else:
        try:
            journal = journal_totals(entries_of(pair, closed=True))
        except (LinkError, OSError) as error:
            unseen.append(f"the gap journal: {error}")
    return Answer(
        egress_at=egress[0] if egress else None,
        egress=egress[1] if egress and isinstance(egress[1], EgressCounts) else None,
        ingress_at=ingress[0] if ingress else None,
        ingress=ingress[1] if ingress and isinstance(ingress[1], IngressCounts) else None,
        unseen=unseen,
        in_vain=in_vain,
        cannot_resend=cannot_resend,
        journal=journal,
    )


def _counts(pair: Pair, status: dict[str, Any]) -> tuple[str, EgressCounts | IngressCounts]:
    role = str(status["role"])
    if status.get("link_id") != pair.link.id:
        raise LinkError(f"the {role} that answers is of link {status.get('link')!r}, not of {pair.link.name!r}")
    try:
        if role == "egress":
            return role, from_status(EgressCounts, status)
        return role, from_status(IngressCounts, status)
    except ValueError as error:
        raise LinkError(f"the {role}: {error}") from error


def _not_seen(egress: bool, ingress: bool) -> Iterator[str]:
    if not egress:
        yield (
            "the egress: what it misses and who else sends to it is not known; name its admin address by"
            " --egress HOST:PORT"
        )
    if not ingress:
        yield (
            "the ingress: what its source and its host lost is not known, and counts as lost on the link; name its"
            " admin address by --ingress HOST:PORT"
        )


def as_json(answer: Answer) -> str:
    """For programs."""
    book = answer.book
    facts = {
        "verdict": answer.verdict,
        "egress": str(answer.egress_at) if answer.egress_at else None,
        "ingress": str(answer.ingress_at) if answer.ingress_at else None,
        "unseen": answer.unseen,
        "datagrams": attrs.asdict(book) if book else None,
        "findings": [{**attrs.asdict(each), "see": each.see} for each in answer.findings],
        "journal": {cause: attrs.asdict(total) for cause, total in answer.journal.items()}
        if answer.journal is not None
        else None,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False)


def as_lines(answer: Answer, file: Path) -> Iterator[str]:
    """For people."""
    yield f"verdict: {answer.verdict}"
    yield ""
    if answer.egress is not None:
        yield f"egress   {answer.egress_at}: {answer.egress.state}, session {answer.egress.epoch}"
    if answer.ingress is not None:
        yield f"ingress  {answer.ingress_at}: {answer.ingress.state}, session {answer.ingress.epoch}"
    for words in answer.unseen:
        yield f"not seen {words}"
    book = answer.book
    if book is not None and book.missed:
        yield ""
        yield f"{book.missed:,} datagrams are missing:"
        for place, count in book.parts.items():
            if count:
                yield f"  {count:>12,}  {_PLACES[place]}"
    if answer.findings:
        yield ""
    for found in answer.findings:
        yield f"{_SIGNS[found.level]} {found.what}"
        yield f"   do: {found.do.replace('FILE', str(file))}"
        yield f"   see {found.see}"
    if answer.journal:
        yield ""
        yield "gap journal, by cause:"
        for cause, total in answer.journal.items():
            yield (
                f"  {cause}: {total.open_entries:,} of {total.entries:,} entries open, {total.messages:,} messages,"
                f" {total.records:,} records, {total.positions_missing:,} positions missing"
            )
