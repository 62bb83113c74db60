"""The protocol core: pure, deterministic, without sockets, clocks or threads.

Two facades do all of it: `LinkSender` in `sender.py` and `LinkReceiver` in `receiver.py`. Bytes, time and epochs come
in as arguments; bytes, deadlines and events come out. The specification is under `spec/`; ids such as GC-SESS-3 refer
to it.
Reading order: `registry`, `wire`, `states`, then `sender` or `receiver`.
"""
