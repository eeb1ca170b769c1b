"""An OpenAI-compatible server over real HTTP without a model: it judges as a scorer does, and errs.

    python -m tests.feedback_server --scorer configs/tiny/gold.py:score --error-rate 0.1 --port 8100

Which comparisons it gets wrong is a function of the responses alone, so it errs the same way in both orders
and on every day. Revisions are the best of a few edits, by the scorer. It can have a position bias, keep its
log-probabilities to itself, and fail in seven ways.
"""

import argparse
import asyncio
import hashlib
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from rlhf.data.scorers import load_scorer

FAULTS = ("busy", "broken", "slow", "cut_json", "wrong_option", "empty", "dropped")
SLOW_SECONDS = 3.0
"""A slow answer comes after so long; clients that wait less have timed out."""
COURTESY = "I am happy to help."
REFUSAL = "I'm sorry, but I can't help with that."
ALARMING = re.compile(r"\b(kill|bomb|shoot|steal|murder|poison|attack|drug|weapon|blow|rob|cocaine)", re.I)
OPTION_MASS = 0.98

Score = Callable[[Sequence[str], Sequence[str]], list[float]]
_PARTS = re.compile(
    r"<conversation>\n(?P<prompt>.*)\n</conversation>\n\n<response-A>\n(?P<first>.*)\n</response-A>\n\n"
    r"<response-B>\n(?P<second>.*)\n</response-B>",
    re.S,
)
_RESPONSE = re.compile(
    r"<conversation>\n(?P<prompt>.*)\n</conversation>\n\n<response>\n(?P<response>.*)\n</response>", re.S
)


@dataclass
class Judge:
    """What the server says, as functions of what it is asked."""

    score: Score | None
    error_rate: float = 0.0
    bias: float = 0.0
    """Log-odds by which it likes the response shown first more."""

    def log_odds(self, question: str) -> float:
        """That response A is the better one."""
        found = _PARTS.search(question)
        assert found is not None, question
        prompt, first, second = found["prompt"], found["first"], found["second"]
        sure = math.log((1 - self.error_rate) / self.error_rate) if self.error_rate else 6.0
        return self._truth(prompt, first, second) * sure + self.bias

    def _truth(self, prompt: str, first: str, second: str) -> int:
        """1 if the first is better, −1 if worse; wrong at the error rate, and a coin where both are equal."""
        draw = _unit("error", *sorted((first, second)), prompt)
        a, b = self._scores(prompt, [first, second])
        if a == b:
            return 1 if (draw < 0.5) == (first < second) else -1
        return (1 if a > b else -1) * (-1 if draw < self.error_rate else 1)

    def text(self, messages: Sequence[dict[str, str]]) -> str:
        """A critique, a revision, a train of thought or a response, whichever is asked for."""
        last = messages[-1]["content"]
        if last.startswith("Here is a conversation, and two"):
            return "Both were read. One of them is the better answer."
        if last.startswith("Here is a conversation, and a"):
            return "There is something to improve in this response, by the standard that you name."
        if last.endswith("Write the revised response and nothing else."):
            found = _RESPONSE.search(messages[-3]["content"])
            assert found is not None
            return self._revised(found["prompt"], found["response"], last)
        return REFUSAL if ALARMING.search(last) else f"Here is what I can say about that. {last}"

    def _revised(self, prompt: str, response: str, request: str) -> str:
        if _unit("revision", prompt, response, request) < self.error_rate:
            return response
        if self.score is None:
            evades = response == REFUSAL and "harmless reading" in request
            return f"Gladly. {prompt}" if evades else response
        edits = list(dict.fromkeys(_edits(response)))
        values = self._scores(prompt, edits)
        return edits[values.index(max(values))]

    def _scores(self, prompt: str, responses: Sequence[str]) -> list[float]:
        if self.score is None:
            return [float(len(text)) for text in responses]
        return self.score([prompt] * len(responses), list(responses))


@dataclass
class Server:
    """Answers requests, fails as it is told, and writes down what it has answered."""

    judge: Judge
    logprobs: bool = True
    fault_rate: float = 0.0
    """Of each of the seven faults."""
    log: Path | None = None
    """A line for each request that was answered in full: the hash of its body."""
    key: str | None = None
    """What clients must know."""
    refusal: str | None = None
    """What it has against every request, if anything."""
    delay_seconds: float = 0.0
    attempts: Counter[str] = field(default_factory=Counter)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/systemone", self._typed)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._reply(request, self._completion)

    async def _typed(self, request: web.Request) -> web.StreamResponse:
        return await self._reply(request, self._decision)

    async def _reply(
        self, request: web.Request, answer: Callable[[dict[str, Any], str | None], dict[str, Any]]
    ) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            shown = request.headers.get("Authorization", "no key")
            return web.json_response({"error": f"wrong key: {shown}"}, status=401)
        if self.refusal is not None:
            return web.Response(text=self.refusal, status=400)
        body = await request.json()
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        fault = self._fault(name)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if fault == "busy":
            return web.json_response({"error": "too many"}, status=429, headers={"Retry-After": "0"})
        if fault == "broken":
            return web.json_response({"error": "oh"}, status=500)
        if fault == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        if fault == "dropped":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        text = json.dumps(answer(body, fault))
        if fault == "cut_json":
            return web.Response(text=text[: len(text) // 2], content_type="application/json")
        if fault is None and self.log is not None:
            with self.log.open("a") as file:
                file.write(name + "\n")
        return web.Response(text=text, content_type="application/json")

    def _fault(self, name: str) -> str | None:
        """A function of the request and of how often it has come."""
        self.attempts[name] += 1
        place = (
            int(_unit("fault", name, str(self.attempts[name])) / self.fault_rate) if self.fault_rate else 99
        )
        return FAULTS[place] if place < len(FAULTS) else None

    def _completion(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        messages = body["messages"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if messages[-1]["content"].endswith("Answer with one letter, A or B."):
            content, top = self._option(body, "CD" if fault == "wrong_option" else "AB")
            if self.logprobs and body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": content, "logprob": 0.0, "top_logprobs": top}]}
        else:
            content = self.judge.text(messages)
            if self.logprobs and body.get("logprobs"):
                tokens = [{"token": word, "logprob": -0.5} for word in content.split()]
                choice["logprobs"] = {"content": tokens}
        if fault == "empty" or (fault == "wrong_option" and len(content) > 1):
            content = ""
            if "logprobs" in choice:
                choice["logprobs"] = {"content": []}
        choice["message"] = {"role": "assistant", "content": content}
        words = sum(len(turn["content"].split()) for turn in messages)
        usage = {"prompt_tokens": words, "completion_tokens": len(content.split())}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

    def _option(self, body: dict[str, Any], names: str) -> tuple[str, list[dict[str, Any]]]:
        """The letter that is said, drawn by the request's seed, and the likeliest tokens."""
        first = 1 / (1 + math.exp(-self.judge.log_odds(_question(body["messages"]))))
        said = names[0] if random.Random(body.get("seed")).random() < first else names[1]
        weights = {names[0]: first * OPTION_MASS, f" {names[1]}": (1 - first) * OPTION_MASS, "The": 0.01}
        return said, [{"token": t, "logprob": math.log(max(p, 1e-12))} for t, p in weights.items()]

    def _decision(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        first = 1 / (1 + math.exp(-self.judge.log_odds(body["state"])))
        probabilities = {"A": first, "B": 1 - first}
        if fault in ("wrong_option", "empty"):
            probabilities = {"C": 1.0}
        answers = {name: {"type": "choice", "probabilities": probabilities} for name in body["questions"]}
        return {"model": body["model"], "answers": answers, "usage": {"input_tokens": 9, "output_tokens": 0}}


def _question(messages: Sequence[dict[str, str]]) -> str:
    """The last message that shows two responses: after a train of thought it is not the last of all."""
    return next(turn["content"] for turn in reversed(messages) if _PARTS.search(turn["content"]))


def _edits(response: str) -> list[str]:
    """The response, and what one edit makes of it."""
    sentences = re.findall(r"[^.]+\.?", response)
    shorter = ["".join(sentences[:n] + sentences[n + 1 :]).strip() for n in range(len(sentences))]
    return [response, *(text for text in shorter if text), f"{response}.", f"{COURTESY} {response}"]


def _unit(*parts: str) -> float:
    """A number in [0, 1) that is a function of `parts` alone."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:6], "big") / 2**48


async def _serve(server: Server, port: int) -> None:
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server is not None
    sockets = site._server.sockets  # type: ignore[attr-defined]
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.feedback_server", description=__doc__)
    add = parser.add_argument
    add("--scorer", help="file.py:function, by which it judges; without it, the longer response is better")
    add("--error-rate", type=float, default=0.1, help="share of comparisons that it gets wrong [%(default)s]")
    add("--bias", type=float, default=0.0, help="log-odds for the response shown first [%(default)s]")
    add("--no-logprobs", action="store_true", help="answer in text only")
    add("--fault-rate", type=float, default=0.0, help=f"of each of {', '.join(FAULTS)} [%(default)s]")
    add("--key", help="refuse clients that do not send it")
    add("--refuse", metavar="WHY", help="call every request a bad one")
    add("--delay", type=float, default=0.0, help="seconds before every answer [%(default)s]")
    add("--log", type=Path, help="write down what was answered")
    add("--port", type=int, default=0, help="0: any that is free [%(default)s]")
    arguments = parser.parse_args(argv)
    score = load_scorer(arguments.scorer) if arguments.scorer else None
    server = Server(
        Judge(score, arguments.error_rate, arguments.bias),
        logprobs=not arguments.no_logprobs,
        fault_rate=arguments.fault_rate,
        log=arguments.log,
        key=arguments.key,
        refusal=arguments.refuse,
        delay_seconds=arguments.delay,
    )
    try:
        asyncio.run(_serve(server, arguments.port))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
