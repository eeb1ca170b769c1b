"""Requests to an OpenAI-compatible endpoint: many at once, and again where one fails.

What may fail is expected to. A refusal for now (429, 5xx), a time-out, a broken connection, JSON that breaks
off and an answer that cannot be used are counted, each by its name, and the request is made again after a
pause. Whatever was received and can be used is stored in the cache before anything else happens.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp

from labeling.constitution.cache import Cache, key_of
from labeling.constitution.config import EndpointSettings
from labeling.constitution.feedback import seed_of
from labeling.retry import Pauses
from labeling.sanitize import sanitize_line
from rlhf.errors import UserError
from rlhf.runs.progress import progress

MAX_PAUSE_SECONDS = 60.0
_AGAIN = frozenset({408, 409, 425, 429})
_KEY = (401, 403)
_SHOWN_CHARACTERS = 200

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One HTTP request, and how its answer is read."""

    path: str
    """Below the endpoint's base."""
    body: Json
    read: Callable[[Json], Any | None]
    """What is kept of a reply, as JSON; None if it is of no use, and is to be asked for again."""
    reading: str = ""
    """Tells what is kept from what earlier programs kept of the same reply, where they read it wrongly."""
    count: Callable[[Any], Mapping[str, int]] = lambda kept: {}
    """What of the kept is counted, by name."""

    @property
    def key(self) -> str:
        """The content of the request alone: not where the endpoint is, nor any key of its user."""
        more = (self.reading,) if self.reading else ()
        return key_of(self.path, json.dumps(self.body, sort_keys=True), *more)


class FailedError(Exception):
    """An attempt failed; `name` is what it is counted as, `detail` what people read."""

    def __init__(
        self,
        name: str,
        detail: str = "",
        *,
        status: int | None = None,
        pause_seconds: float = 0.0,
        for_good: bool = False,
    ) -> None:
        super().__init__(detail or name)
        self.name = name
        self.status = status
        self.pause_seconds = pause_seconds
        self.for_good = for_good


class Endpoint:
    """An endpoint, the answers it has given, and what they have cost."""

    def __init__(self, settings: EndpointSettings, cache: Cache) -> None:
        self._settings, self._cache = settings, cache
        self._url = settings.url.rstrip("/")
        self._secret = _secret(settings)
        self._jitter = Random(0)
        self.last_failure = ""
        """What the newest failure was, in words."""
        self.last_status: int | None = None
        """The HTTP status of the newest failure; None where it was of another kind."""
        self._pauses = Pauses(settings.backoff_seconds, MAX_PAUSE_SECONDS)
        self._has_warned = False
        self._ending = asyncio.Event()
        self._reached = False
        """Whether it has answered anything at all: one that never did is not waited for."""

    def call(self, calls: Sequence[Call], desc: str) -> list[Any | None]:
        """What is kept of the reply to each call; None where every attempt gave something of no use.

        A call that is known, or stands there twice, is made once.

        Raises:
            UserError: the endpoint cannot be reached, wants another key, does not answer, or the budget is
                spent. What had been received is kept, and the same command resumes from there.
        """
        keys = [call.key for call in calls]
        unknown = {key: call for key, call in zip(keys, calls, strict=True) if self._cache.get(key) is None}
        if unknown:
            asyncio.run(self._ask(unknown, desc))
        return [self._cache.get(key) for key in keys]

    async def _ask(self, calls: Mapping[str, Call], desc: str) -> None:
        waiting, mistakes = iter(calls.items()), list[UserError]()
        self._ending = (
            asyncio.Event()
        )  # requests that were sent are still waited for: they have been paid for
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_seconds)
        connector = aiohttp.TCPConnector(limit=self._settings.concurrency)
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        with progress(len(calls), desc) as bar:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as http:

                async def work() -> None:
                    for key, call in waiting:
                        try:
                            await self._complete_call(http, key, call)
                        except UserError as error:
                            mistakes.append(error)
                            self._ending.set()
                        if self._ending.is_set():
                            return
                        bar.update()

                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._settings.concurrency, len(calls))):
                        group.create_task(work())
        if mistakes:
            raise mistakes[0]

    async def _complete_call(self, http: aiohttp.ClientSession, key: str, call: Call) -> None:
        """Make one call until its answer is in the cache, or it is clear that there will be none.

        After an answer of no use the same seed would give the same, so it is asked with another.
        """
        unusable = in_a_row = 0
        for attempt in range(self._settings.max_attempts):
            self._check_budget()
            try:
                answer, counts = await self._attempt(http, call, unusable)
            except FailedError as failed:
                self._cache.count(**{failed.name: 1}, retries=int(attempt > 0))
                self.last_failure, self.last_status = str(failed), failed.status
                if failed.for_good:
                    return
                self._warn_once()
                in_a_row += 1
                if attempt + 1 < self._settings.max_attempts:
                    await self._pause(max(failed.pause_seconds, self._pause_seconds(in_a_row)))
                if self._ending.is_set():
                    return
                continue
            in_a_row = 0
            if answer is not None:
                counted = counts | {"answers": 1, "retries": int(attempt > 0)} | dict(call.count(answer))
                self._cache.put(key, answer, counted)
                self._check_tokens_are_told(counts)
                return
            unusable += 1
            self.last_failure, self.last_status = "an answer that cannot be used", None
            self._cache.count(**counts, unusable_answer=1, retries=int(attempt > 0))
        if unusable:
            self._cache.count(unanswered=1)
            return
        raise UserError(
            f"it did not answer in {self._settings.max_attempts} attempts ({self.last_failure})",
            where=self._settings.url,
            fix="See that it runs and is not overloaded (lower `concurrency`, or raise `timeout_seconds`), "
            "then run the same command again: what it has answered is kept.",
        )

    async def _attempt(
        self, http: aiohttp.ClientSession, call: Call, unusable: int
    ) -> tuple[Any | None, dict[str, int]]:
        """One request: what is kept of its answer, and the tokens it took.

        Raises:
            FailedError: it got no reply that can be read.
            UserError: no further attempt can help either.
        """
        body = call.body
        if unusable and "seed" in body:
            body = body | {"seed": seed_of("again", body["seed"], unusable)}
        try:
            async with http.post(f"{self._url}/{call.path}", json=body, allow_redirects=False) as reply:
                self._reached = True
                text = await reply.text(errors="replace")
                if reply.status != 200:
                    raise self._refusal(reply.status, text, reply.headers.get("Retry-After", ""))
        except TimeoutError as error:
            raise FailedError("timed_out") from error
        except aiohttp.InvalidURL:
            raise UserError(
                "this is no URL of an endpoint", where=self._settings.url, fix="Correct `url`, port included."
            ) from None
        except aiohttp.ClientConnectorError as error:
            if not self._reached:
                raise self._unreachable(error) from None
            raise FailedError("connection_lost", str(error)) from error
        except aiohttp.ClientError as error:
            raise FailedError("connection_lost", str(error)) from error
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FailedError("broken_json") from error
        try:
            answer = call.read(found)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
            answer = None  # JSON, and not in the shape of a reply
        return answer, {"requests": 1, **_tokens(found)}

    def _refusal(self, status: int, text: str, retry_after: str) -> FailedError | UserError:
        excerpt = text.replace(self._secret, "***") if self._secret else text
        said = f"status {status}: {sanitize_line(excerpt.strip()[:_SHOWN_CHARACTERS])}"
        if status in _AGAIN or status >= 500:
            pause = float(retry_after) if retry_after.isdecimal() else 0.0
            return FailedError(
                f"status_{status}", said, status=status, pause_seconds=min(pause, MAX_PAUSE_SECONDS)
            )
        if status in _KEY:
            return UserError(
                f"the endpoint refuses the key ({said})",
                where=self._settings.url,
                fix="Put the right one into the variable that `key_variable` names.",
            )
        if status in (400, 413, 422):  # this request is wrong, the next may not be
            return FailedError(f"status_{status}", said, status=status, for_good=True)
        return UserError(
            f"the endpoint refuses the request ({said})",
            where=f"{self._settings.url}, model {self._settings.model}",
            fix="Check `url` (does it end in /v1?) and `model`.",
        )

    def _check_budget(self) -> None:
        """Stop before the next request if the budget is spent, by this process and earlier ones together.

        Raises:
            UserError: it is.
        """
        settings = self._settings
        if settings.max_tokens is None and settings.max_cost is None:
            return
        counts = self._cache.counts()
        read, written = counts.get("input_tokens", 0), counts.get("output_tokens", 0)
        if settings.max_tokens is not None and read + written >= settings.max_tokens:
            raise _over(f"{read + written:,} tokens", settings, "max_tokens")
        money = cost(settings, read, written)
        if settings.max_cost is not None and money >= settings.max_cost:
            raise _over(f"{money:.4f}", settings, "max_cost")

    def _check_tokens_are_told(self, counts: Mapping[str, int]) -> None:
        """A budget holds only where replies say what they took.

        Raises:
            UserError: there is a budget, and this one did not.
        """
        name = "max_tokens" if self._settings.max_tokens is not None else "max_cost"
        if getattr(self._settings, name) is None or counts["input_tokens"] or counts["output_tokens"]:
            return
        raise UserError(
            f"its replies do not say how many tokens they took (`usage`), so `{name}` cannot be kept",
            where=self._settings.url,
            fix="Unset `max_cost` and `max_tokens` to continue without a budget (limit the number of prompts "
            "or items instead), or ask an endpoint that tells. What it has answered is kept.",
        )

    async def _pause(self, seconds: float) -> None:
        """Pause; not longer than until another call has ended the stage."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)

    def _warn_once(self) -> None:
        """Say at the first failure that there are any: until something succeeds nothing else is seen."""
        if not self._has_warned:
            print(f"{self._settings.url}: {self.last_failure}; trying again", file=sys.stderr)
            self._has_warned = True

    def _unreachable(self, error: aiohttp.ClientConnectorError) -> UserError:
        return UserError(
            f"the endpoint cannot be reached ({error.os_error.strerror or error.os_error})",
            where=self._settings.url,
            fix="Start the server, or name another (labeling.constitution.feedback.endpoint.url=...).",
        )

    def _pause_seconds(self, in_a_row: int) -> float:
        """After so many failures in a row; half of it is random, so that requests do not come all at once."""
        return self._pauses.after(in_a_row) * (0.5 + 0.5 * self._jitter.random())


def cost(settings: EndpointSettings, input_tokens: int, output_tokens: int) -> float:
    """What so many tokens cost, in the unit of the prices."""
    return (input_tokens * settings.input_price + output_tokens * settings.output_price) / 1e6


def _over(spent: str, settings: EndpointSettings, name: str) -> UserError:
    return UserError(
        f"the budget is spent ({spent}; `{name}` is {getattr(settings, name):,})",
        where=settings.url,
        fix=f"Raise `{name}` and run the same command again: it resumes, and asks nothing twice.",
    )


def _secret(settings: EndpointSettings) -> str | None:
    if settings.key_variable is None:
        return None
    secret = os.environ.get(settings.key_variable, "").strip()
    if not secret:
        raise UserError(
            f"the environment variable {settings.key_variable} is empty",
            where=settings.url,
            fix="Put the endpoint's key into it, or unset `key_variable`.",
        )
    if not secret.isprintable():
        raise UserError(
            f"the variable {settings.key_variable} holds more than a key: a line break, or another "
            "character that cannot be sent",
            where=settings.url,
            fix="Put the key alone into it, without a line break inside.",
        )
    return secret


def _tokens(reply: Any) -> dict[str, int]:
    """Input and output tokens as the reply states them; 0 where it states none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    usage = usage if isinstance(usage, dict) else {}

    def number(*names: str) -> int:
        return next((usage[name] for name in names if _is_count(usage.get(name))), 0)

    return {
        "input_tokens": number("prompt_tokens", "input_tokens"),
        "output_tokens": number("completion_tokens", "output_tokens"),
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**40
