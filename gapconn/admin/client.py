"""Asking the admin endpoint of an end, and controlling it: what `gapconn pause` and the monitor use."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import attrs
import httpx
import trio
from trio_util import move_on_when

from gapconn.errors import LinkError

TICK_S: Final = 0.05
"""What a timeout is made of: who runs late, has more time by what each of these was late."""


class NoAnswerError(LinkError):
    """It did not answer, or not in time, or not as an end of gapconn does."""


class RefusedError(LinkError):
    """It answered that it does not do it."""


@attrs.frozen
class Health:
    """What `/health` said."""

    problems: list[str]
    """What is wrong, a sentence each."""
    facts: dict[str, Any]
    """All that it said."""


class AdminClient:
    """One end's admin endpoint.

    Each request has a connection of its own: an idle one may be closed by the other side at the moment at which it is
    used again, and that would look like a dead end.

    Args:
        url: Such as `http://192.0.2.10:9464`.
        token: For what needs it; empty for what does not.
        timeout_s: For a whole request. No answer within it is none. Time in which this process did not get to run does
            not count: it could not have seen an answer.
    """

    def __init__(self, url: str, *, token: str = "", timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        # The certificates of the system take a moment to load: only for who needs them.
        verify = ssl.create_default_context() if url.startswith("https:") else False
        self._client = httpx.AsyncClient(
            base_url=self.url,
            trust_env=False,
            verify=verify,
            timeout=None,  # httpx's own one is for each step, and counts all time
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def health(self) -> Health:
        """What `/health` says.

        Raises:
            NoAnswerError: nothing.
        """
        answer = await self._request("GET", "/health")
        facts = self._json(answer)
        if answer.status_code not in (200, 503):
            raise NoAnswerError(f"{self.url}/health: answered {answer.status_code}")
        return Health(problems=[str(each) for each in facts.get("problems", ())], facts=facts)

    async def positions(self) -> dict[str, int]:
        """What the egress has delivered: the next position it misses, by `cluster/topic/partition`.

        Raises:
            NoAnswerError, RefusedError: it is not known.
        """
        answer = self._done(await self._request("GET", "/positions"))
        try:
            return {
                f"{each['cluster']}/{each['topic']}/{each['partition']}": int(each["next"])
                for each in answer["positions"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise NoAnswerError(f"{self.url}/positions: not as expected: {error!r}") from error

    async def gaps(self) -> str:
        """What the egress misses, as `gapconn gaps export` writes it.

        Raises:
            NoAnswerError, RefusedError: it is not known.
        """
        answer = await self._request("GET", "/gaps")
        self._done(answer)
        return answer.text

    async def post(self, path: str, body: Mapping[str, Any] | str) -> dict[str, Any]:
        """Have something done: `/pause`, `/resume`, `/resend`; what was answered.

        Raises:
            NoAnswerError: it is not known whether it was done.
            RefusedError: it was not.
        """
        content: dict[str, Any] = {"content": body.encode()} if isinstance(body, str) else {"json": dict(body)}
        return self._done(await self._request("POST", path, **content))

    async def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        answer, problem = None, f"no answer within {self._timeout_s:g} s"
        async with move_on_when(_sleep_awake, self._timeout_s):
            try:
                answer = await self._client.request(method, path, **content)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = str(error) or type(error).__name__
        if answer is None:
            raise NoAnswerError(f"{self.url}{path}: {problem}")
        return answer

    def _done(self, answer: httpx.Response) -> dict[str, Any]:
        facts = self._json(answer)
        if answer.status_code != 200:
            raise RefusedError(f"{answer.url}: {facts.get('error', f'answered {answer.status_code}')}")
        return facts

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code == 404:
            raise RefusedError(f"{answer.url}: there is no such page: another role, or an older release of gapconn")
        try:
            facts = answer.json()
        except ValueError as error:
            raise NoAnswerError(f"{answer.url}: not JSON: is this an end of gapconn?") from error
        return facts if isinstance(facts, dict) else {}


async def _sleep_awake(seconds: float) -> None:
    """Sleep for so long; a tick counts as what it was to be, however late this process was scheduled again."""
    while seconds > 0:
        tick_s = min(TICK_S, seconds)
        await trio.sleep(tick_s)
        seconds -= tick_s
