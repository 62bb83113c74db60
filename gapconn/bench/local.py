"""Both ends of a bench on this host, over the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

_END_S = 60.0
"""How long an ingress may take to end behind its last step."""


def run_local(file: Path, *, ingress_options: list[str], egress_options: list[str]) -> int:
    """Run both ends as processes, and show what the egress prints.

    Returns:
        The exit code of the end that failed, or 0.
    """
    address = f"127.0.0.1:{_free_port()}"
    environ = os.environ | {"GAPCONN_LINK_ADDRESS": address, "GAPCONN_LINK_BIND": address}
    command = [sys.executable, "-m", "gapconn", "bench"]
    egress = subprocess.Popen(
        [*command, "egress", str(file), *egress_options], env=environ, stdout=subprocess.PIPE, text=True
    )
    ingress: subprocess.Popen[bytes] | None = None
    try:
        assert egress.stdout is not None
        try:
            for line in egress.stdout:
                _show(line)
                if ingress is None and "listening" in line:  # what an ingress says before is lost
                    ingress = subprocess.Popen(
                        [*command, "ingress", str(file), *ingress_options], env=environ, stdout=subprocess.DEVNULL
                    )
                    threading.Thread(target=_end_with, args=(ingress, egress), daemon=True).start()
        except KeyboardInterrupt:  # of which both ends were told as well
            for line in egress.stdout:
                _show(line)
        code = egress.wait()
        return (ingress.wait(_END_S) if ingress is not None else 0) or code
    finally:
        for process in (ingress, egress):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(_END_S)


def _show(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _end_with(ingress: subprocess.Popen[bytes], egress: subprocess.Popen[str]) -> None:
    """An egress whose ingress failed would wait for ever."""
    if ingress.wait():
        egress.terminate()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
