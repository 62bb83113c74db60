"""`gapconn bench`: what rate a link holds without loss, measured by its own two ends.

The ingress sends self-checking records in steps, each at a rate of its own, and the egress says what became of them.
Nothing comes back across the gap: which step it is, and what was sent in it, travels with the data. Each step is a
session, as `gapconn ingress` would run it at that rate. Reading order:

    plan      the steps, and what is said about them across the gap
    ingress   sends the steps
    egress    counts what arrives, step by step
    report    what is shown, and what rate is recommended
    local     both on this host
"""
