"""Where data was lost: from the counters of the two ends to what happened and what to do about it.

`counts` is what the ends know, `ledger` puts every missing datagram to exactly one place, `findings` says it in words;
all three are pure. `command` asks the running ends, and prints.
"""
