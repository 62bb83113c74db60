"""Redundant links: one copy of what arrives several times.

    [[input]] link "a" ──▶ ┐
                           ├─▶ identity ─▶ seen before? ─▶ (hold for order) ─▶ [output]
    [[input]] link "b" ──▶ ┘       │
                                   └─▶ counts of each link ─▶ alarm: a link is silent, a link lags

Pure, without sockets, clocks and Kafka: `identity`, `offsets`, `window`, `order`, `links`, `changelog`, and
`deduplicator`, which puts them together. Around them: `kafka` (exactly once, by transactions), `datagrams` (UDP) and
`service`; and `repeats`, the option `dedup` of a sink.
"""
