"""Whole topologies for `gapconn check`: pair files side by side, Compose files, rendered Kubernetes manifests.

`compose` and `kubernetes` read what would run, and know the rules of their own; `lint` has the rules that hold
everywhere. All rules are pure functions of what was read. `check` finds out what it was given, and puts it together.
"""
