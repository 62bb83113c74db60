"""Every error that gapconn raises on purpose.

A library's or the operating system's errors are mapped to one of these at the edge where they occur, so that the
services need to know only this family.
"""


class GapconnError(Exception):
    """Base of all errors that gapconn raises on purpose."""


class ConfigError(GapconnError):
    """A configuration that cannot be used. Carries every problem that was found, not only the first."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        """One sentence each: the file, the key, what was wrong and what is allowed."""


class LocalProtocolError(GapconnError):
    """The caller misused the protocol core, for example sent data after the shutdown."""


class RemoteProtocolError(GapconnError):
    """Bytes from the other side of the gap that are not what the specification says."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """Name of the drop reason in `spec/registry.toml`."""


class SourceError(GapconnError):
    """A source cannot go on, and trying again would not help."""


class SinkError(GapconnError):
    """A sink cannot go on, and trying again would not help."""


class LinkError(GapconnError):
    """The link's socket, stored state or admin endpoint cannot be opened or used."""


class DedupError(GapconnError):
    """The deduplicator cannot go on, and trying again would not help, or would do harm."""
