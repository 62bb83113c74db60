"""The monitor's page: every pair at a glance, and what was done. It needs no script, and loads itself again."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Final

REFRESH_S: Final = 2
LOG_LINES_MAX: Final = 50

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .2rem 0; } .quiet { opacity: .65; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem .45rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
.badge { border-radius: .3rem; padding: .1rem .5rem; font-weight: 600; color: #fff; background: #667; }
.working, .up { background: #1a7f37; } .out, .down { background: #c62828; }
.suspect, .recovering, .paused { background: #b25e00; }
"""


def render(status: Mapping[str, Any]) -> str:
    """The page for what `/status` says."""
    pairs = status["pairs"]
    out = [pair["pair"] for pair in pairs if pair["state"] in ("out", "recovering")]
    headline = f"{len(pairs) - len(out)} of {len(pairs)} pairs work"
    rows = "".join(map(_pair_row, pairs))
    log = "".join(
        f'<tr><td class="time">{_text(entry["at"].replace("T", " ")[:19])}Z</td><td>{_text(entry["pair"])}</td>'
        f"<td>{_text(entry['event'])}</td><td>{_text(entry['text'])}</td></tr>"
        for entry in status["log"][:LOG_LINES_MAX]
    )
    nothing = '<tr><td colspan="4" class="quiet">nothing yet</td></tr>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{REFRESH_S}">
<meta name="viewport" content="width=device-width"><title>{_text(headline)} - gapconn monitor</title>
<style>{_STYLE}</style></head><body>
<h1>gapconn monitor {_text(status["name"])}</h1>
<p id="headline">{_text(headline)}{", out: " + _text(", ".join(out)) if out else ""}</p>
<p class="quiet">up for {_duration(status["uptime_s"])}, version {_text(status["version"])},
 <a href="/status">/status</a> <a href="/metrics">/metrics</a></p>
<h2>Pairs</h2>
<table id="pairs"><thead><tr><th>pair</th><th>state</th><th>ingress</th><th>egress</th></tr></thead>
<tbody>{rows}</tbody></table>
<h2>What happened</h2>
<table id="log"><tbody>{log or nothing}</tbody></table>
</body></html>
"""


def _pair_row(pair: Mapping[str, Any]) -> str:
    state = pair["state"]
    notes = [pair["misconfigured"] or pair["failure"] or ""]
    if state == "out" and pair["out_for_s"] is not None:
        notes.append(f"out for {_duration(pair['out_for_s'])}")
    if state == "recovering":
        notes.append(f"healthy for {_duration(pair['healthy_for_s'])} of {_duration(pair['must_be_healthy_for_s'])}")
    if pair["times_out"] > 1:
        notes.append(f"out {pair['times_out']} times lately")
    return (
        f'<tr id="pair-{_text(pair["pair"])}"><th>{_text(pair["pair"])}</th>'
        f'<td><span class="badge {state}">{state}</span>{_notes(notes)}</td>'
        f"<td>{_ingress(pair['ingress'])}</td><td>{_egress(pair['egress'], pair['positions_known'])}</td></tr>"
    )


def _ingress(end: Mapping[str, Any]) -> str:
    if not end["url"]:
        return '<span class="quiet">not watched</span>'
    notes = [*end["problems"], *(f"held by {hold['owner']}: {hold['reason']}" for hold in end["holds"])]
    if not end["answers"]:
        return _badge("down", "no answer") + _notes([end["why"]])
    if end["holds"]:
        return _badge("paused", "paused" if end["at_rest"] else "pausing") + _notes(notes)
    return _badge("up", "sending") + _notes(notes)


def _egress(end: Mapping[str, Any], positions: int | None) -> str:
    if not end["answers"]:
        return _badge("down", "no answer") + _notes([end["why"]])
    notes = list(end["problems"])
    if end["sink_stalled_s"]:
        notes.append(f"its target has taken nothing for {_duration(end['sink_stalled_s'])}")
    if end["gaps"]:
        notes.append(f"{end['gaps']} positions missing")
    if positions:
        notes.append(f"knows where {positions} partition{'s stand' if positions > 1 else ' stands'}")
    return _badge("down" if end["problems"] else "up", "failing" if end["problems"] else "receiving") + _notes(notes)


def _badge(kind: str, text: str) -> str:
    return f'<span class="badge {kind}">{text}</span>'


def _notes(notes: list[str]) -> str:
    return "".join(f"<p>{_text(note)}</p>" for note in notes if note)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _text(value: object) -> str:
    return html.escape(str(value))
