"""gapconn carries Kafka topics, UDP, TCP and files across a one-way network gap."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gapconn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
