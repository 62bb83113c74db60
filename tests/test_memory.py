"""The allocator keeps what is freed: the next messages touch no new page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from gapconn.memory import keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"

# Some messages are held between the tasks of an end, are all gone when it is idle for a moment, and then come again.
MESSAGES = """
import resource
from gapconn.memory import keep_freed_memory

def messages(rounds):
    for _ in range(rounds):
        held = [bytearray(1 << 20) for _ in range(6)]
        del held

if KEEP:
    assert keep_freed_memory()
messages(20)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
messages(50)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun) // 50)
"""

# One worker thread after the other makes messages, which all go before the next one makes its own.
WORKERS = """
import threading
from gapconn.memory import keep_freed_memory

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) // 256

assert keep_freed_memory()
turns = [threading.Event() for _ in range(9)]

def work(number):
    turns[number].wait()
    held = [bytearray(b"x") * (1 << 20) for _ in range(20)]
    del held
    turns[number + 1].set()
    turns[-1].wait()

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
before = resident_mib()
turns[0].set()
for thread in threads:
    thread.join()
print(resident_mib() - before)
"""


def faults_per_round(*, keep: bool) -> int:
    """Pages that the kernel had to provide for six messages, of their 1536."""
    program = MESSAGES.replace("KEEP", str(keep))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_the_pages_of_a_message_are_used_again() -> None:
    assert faults_per_round(keep=True) < 10


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_threads_do_not_each_keep_what_they_once_held() -> None:
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 60, "MiB: of 20 at a time, by eight threads in turn"


def test_it_says_whether_the_allocator_was_told() -> None:
    assert keep_freed_memory() == GLIBC
