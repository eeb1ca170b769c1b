"""Feedback models that nobody should believe, over real HTTP: each a function from a request to a reply."""

import asyncio
import json
import random
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Judge = Callable[[Json], Json]
"""The body of a chat request → the choice of its reply."""

_RESPONSES = re.compile(r"<response-A>\n(.*)\n</response-A>\n\n<response-B>\n(.*)\n</response-B>", re.S)


def better(body: Json) -> str:
    """The longer response's letter; equally long, the one that comes first in the alphabet."""
    found = None
    for turn in body["messages"]:
        found = _RESPONSES.search(turn["content"]) or found
    assert found is not None
    first, second = ((len(text), text) for text in found.groups())
    return "A" if first > second else "B"


def is_choice(body: Json) -> bool:
    return bool(body["messages"][-1]["content"].endswith("Answer with one letter, A or B."))


def is_revision(body: Json) -> bool:
    return bool(body["messages"][-1]["content"].endswith("Write the revised response and nothing else."))


def said(content: Any, *, finish: str = "stop", **more: Any) -> Json:
    """A choice of a reply."""
    return {"finish_reason": finish, "message": {"role": "assistant", "content": content, **more}}


def with_logprobs(choice: Json, top: dict[str, float]) -> Json:
    tokens = [{"token": token, "logprob": value} for token, value in top.items()]
    first = {"token": next(iter(top)), "logprob": next(iter(top.values())), "top_logprobs": tokens}
    return choice | {"logprobs": {"content": [first]}}


def coin(body: Json) -> Json:
    """A letter in which the responses have no part."""
    return said(random.Random(json.dumps(body, sort_keys=True)).choice("AB"))


@contextmanager
def chat_server(answer: Callable[[web.Request], Awaitable[web.Response]]) -> Iterator[str]:
    """A server whose chat completions are what `answer` makes of a request; its URL."""

    async def start() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=60)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=60)
        loop.close()


@contextmanager
def serving(judge: Judge) -> Iterator[tuple[str, list[Json]]]:
    """A server that answers as `judge` says; its URL, and the bodies that it gets."""
    bodies: list[Json] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return web.json_response({"choices": [judge(bodies[-1])], "usage": usage})

    with chat_server(answer) as url:
        yield url, bodies
