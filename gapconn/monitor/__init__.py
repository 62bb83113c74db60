"""`gapconn monitor`: watches pairs over the management network, and pauses an ingress whose egress is dead.

config    what FILE says                        states    when a pair is out, and when it may work again (pure)
watch     one task for each pair: asks, decides, acts     verdict   what an answer of /health means (pure)
actions   pause and resume                      gap_reports  what an egress misses, carried to its ingress
notify    webhook and Alertmanager              view, page   /metrics, /status, and a page for people
memory    what a restart of the monitor must not forget
"""
