"""How an ingress is taken out and let work again. Each may be done twice: the second time changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import trio

from gapconn.errors import LinkError

OUTPUT_CHARACTERS_MAX: Final = 300


async def run_command(command: Sequence[str], timeout_s: float) -> None:
    """Run a command to its end.

    Raises:
        LinkError: it cannot be started, fails, or takes too long; with what it said.
    """
    try:
        with trio.fail_after(timeout_s):
            done = await trio.run_process(
                list(command), capture_stdout=True, stderr=subprocess.STDOUT, check=False, stdin=b""
            )
    except trio.TooSlowError:
        raise LinkError(f"{command[0]}: not done within {timeout_s:g} s, and ended") from None
    except OSError as error:
        raise LinkError(f"{command[0]}: cannot be run: {error}") from error
    if done.returncode:
        said = (done.stdout or b"").decode("utf-8", "replace").strip()[-OUTPUT_CHARACTERS_MAX:]
        raise LinkError(f"{command[0]}: exit code {done.returncode}: {said}")


async def post_json(url: str, content: Mapping[str, Any] | Sequence[Any], timeout_s: float) -> None:
    """POST JSON to somebody who is no end of gapconn.

    Raises:
        LinkError: it was not taken.
    """
    try:
        with trio.fail_after(timeout_s):
            async with httpx.AsyncClient(trust_env=False, timeout=timeout_s) as client:
                answer = await client.post(url, json=content)
    except trio.TooSlowError:
        raise LinkError(f"{url}: no answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LinkError(f"{url}: {str(error) or type(error).__name__}") from error
    if not answer.is_success:
        raise LinkError(f"{url}: answered {answer.status_code}")
