"""A feedback model behind an endpoint: texts, and choices read in whichever way the endpoint offers."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from labeling.constitution.cache import Cache
from labeling.constitution.config import EndpointSettings
from labeling.constitution.endpoint import Call, Endpoint, Json
from labeling.constitution.feedback import Answer, Chosen, Request, Written, log_sum, normalized, seed_of
from rlhf.errors import UserError
from rlhf.model.chat import prompt_text

CHAT, TYPED = "chat/completions", "systemone"
NUM_TOP = 20
"""Tokens whose log-probabilities are asked for: the most that hosted endpoints give."""
_AROUND = " \t\n()[]{}*_`'\".:,ĠĊ▁"
"""May stand around an option's letter; the last three are spaces in a tokenizer's own spelling."""
_QUESTION = "choice"
_MANY_CHOICES = 10
_LEAST = 1e-9
"""Of a probability that an endpoint calls 0, or leaves no room for."""


class ServedModel:
    """Asks an endpoint; a choice is read from log-probabilities, from votes, or from a typed decision."""

    def __init__(self, settings: EndpointSettings, cache: Cache) -> None:
        self.name = settings.model
        self._settings = settings
        self._endpoint = Endpoint(settings, cache)
        self._answers: str = settings.answers

    def ask(self, requests: Sequence[Request], desc: str) -> list[Answer | None]:
        """As `Model.ask`.

        Raises:
            UserError: as `Endpoint.call`, or nothing that it says can be used.
        """
        writing = [number for number, request in enumerate(requests) if not request.options]
        choosing = [number for number, request in enumerate(requests) if request.options]
        found: list[Answer | None] = [None] * len(requests)
        for numbers, answer in ((writing, self._write), (choosing, self._choose)):
            part = [requests[number] for number in numbers]
            for number, each in zip(numbers, answer(part, desc) if part else [], strict=True):
                found[number] = each
        if requests and not any(found):
            raise UserError(
                f"none of {len(requests):,} answers can be used (the last: {self._endpoint.last_failure})",
                where=f"{self._settings.url}, model {self._settings.model}",
                fix=self._way_out(bool(writing)),
            )
        return found

    def _way_out(self, writing: bool) -> str:
        fix = "Choose another model, or another way of reading choices (`answers`)."
        status = self._endpoint.last_status
        is_refused = status is not None and 400 <= status < 500
        if writing and self._settings.text_logprobs and is_refused:
            fix = "If it refuses the log-probabilities of texts, set `text_logprobs: false`. " + fix
        return fix

    def _write(self, requests: Sequence[Request], desc: str) -> Sequence[Answer | None]:
        more = {"logprobs": True} if self._settings.text_logprobs else {}
        calls = [Call(CHAT, self._chat(request) | more, _text) for request in requests]
        return [
            None if kept is None else Written(text=kept["text"], logprob=kept["logprob"])
            for kept in self._endpoint.call(calls, desc)
        ]

    def _choose(self, requests: Sequence[Request], desc: str) -> Sequence[Answer | None]:
        if self._answers == "auto":
            self._answers = self._best_way(requests[0], desc)
        if self._answers == "votes":
            return self._count_votes(requests, desc)
        calls = [
            self._typed_call(request) if self._answers == "typed" else self._logprobs_call(request)
            for request in requests
        ]
        return [
            None
            if kept is None
            else Chosen(logprobs=tuple(kept["logprobs"]), mass=kept["mass"], method=self._answers)
            for kept in self._endpoint.call(calls, desc)
        ]

    def _best_way(self, request: Request, desc: str) -> str:
        """Log-probabilities if a first reply has any, else votes; the reply is kept, and asked for once."""

        def read(reply: Json) -> Any:
            choice = reply["choices"][0]
            tokens = (choice.get("logprobs") or {}).get("content") or [{}]
            has_logprobs = bool(tokens[0].get("top_logprobs"))
            return {"has_logprobs": has_logprobs} if has_logprobs or choice["message"]["content"] else None

        body = self._logprobs_call(request).body
        body |= {"seed": 1, self._settings.length_field: 1}
        [kept] = self._endpoint.call([Call(CHAT, body, read)], desc)
        return "logprobs" if kept is not None and kept["has_logprobs"] else "votes"

    def _chat(self, request: Request) -> Json:
        return {
            "model": self._settings.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
            self._settings.length_field: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            **self._settings.extra,
        }

    def _logprobs_call(self, request: Request) -> Call:
        body = self._chat(request) | {"logprobs": True, "top_logprobs": NUM_TOP}
        return Call(CHAT, body, lambda reply: option_logprobs(reply, request.options))

    def _typed_call(self, request: Request) -> Call:
        criteria = {option: f"The answer is {option}." for option in request.options}
        question = {"type": "choice", "criteria": criteria}
        body = {
            "model": self._settings.model,
            "state": prompt_text(request.messages),
            "questions": {_QUESTION: question},
        }
        return Call(TYPED, body, lambda reply: _decision(reply, request.options))

    def _count_votes(self, requests: Sequence[Request], desc: str) -> list[Answer | None]:
        """Each vote is a request of its own, so that one that has been cast is never asked for again."""
        num = self._settings.votes
        calls = [
            Call(
                CHAT,
                self._chat(request)
                | {
                    "seed": seed_of("vote", request.seed, n),
                    self._settings.length_field: self._settings.vote_tokens,
                },
                partial(_vote, options=request.options),
            )
            for request in requests
            for n in range(num)
        ]
        votes = self._endpoint.call(calls, desc)
        _warn_if_greedy(votes, num)
        return [
            from_votes([vote for vote in votes[n * num : (n + 1) * num] if vote is not None], request.options)
            for n, request in enumerate(requests)
        ]


def option_logprobs(reply: Json, options: Sequence[str]) -> Json | None:
    """The options' log-probabilities, normalized over them, and their probability together before that.

    Spellings of one option (with a space, in brackets) count together. An option that is not among the
    likeliest tokens (some endpoints fill those up with −inf) gets the most that it may have: the probability
    of the last of them, or what all of them leave. If none is, there is no answer.
    """
    content = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    top = [(each["token"].strip(_AROUND), float(each["logprob"])) for each in content]
    top = [(token, value) for token, value in top if math.isfinite(value)]
    found = [[value for token, value in top if token == option] for option in options]
    if not any(found):
        return None
    mass = sum(math.exp(value) for values in found for value in values)
    left = 1 - sum(math.exp(value) for _, value in top)
    floor = min(*(value for _, value in top), math.log(max(left, _LEAST)))
    options_logprobs = normalized([log_sum(values) if values else floor for values in found])
    return {"logprobs": options_logprobs, "mass": min(1.0, mass)}


def from_votes(votes: Sequence[str], options: Sequence[str]) -> Chosen | None:
    """Each option's share of the votes, half a vote added to each (Krichevsky and Trofimov 1981).

    So unanimous votes still leave the other option a chance, and fewer votes a better one. Without any vote
    there is no answer.
    """
    if not votes:
        return None
    counts = [votes.count(option) + 0.5 for option in options]
    return Chosen(logprobs=tuple(math.log(n / sum(counts)) for n in counts), method="votes")


def _text(reply: Json) -> Json | None:
    choice = reply["choices"][0]
    # Half a surrogate pair is no character, and no file takes it.
    text = choice["message"]["content"].encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprob = sum(float(token["logprob"]) for token in tokens) if tokens else None
    if logprob is not None and not math.isfinite(logprob):
        logprob = None
    return {"text": text, "logprob": logprob} if text else None


def _vote(reply: Json, options: Sequence[str]) -> str | None:
    """The only option that a text names; a model may say `B`, `(B)` or `It is B.`, and not `A or B`."""
    words = reply["choices"][0]["message"]["content"].split()
    named = {word.strip(_AROUND) for word in words} & set(options)
    return named.pop() if len(named) == 1 else None


def _warn_if_greedy(votes: Sequence[str | None], num: int) -> None:
    """Say so where sampling seems to be off: such votes say nothing of how sure the model is."""
    cast = [set(votes[start : start + num]) - {None} for start in range(0, len(votes), num)]
    if num > 1 and len(cast) >= _MANY_CHOICES and all(len(each) == 1 for each in cast):
        print(
            f"warning: constitution: the votes on each of {len(cast):,} choices are all the same; does it "
            "sample? (`transformers serve` needs do_sample in the model's generation_config.json)",
            file=sys.stderr,
        )


def _decision(reply: Json, options: Sequence[str]) -> Json | None:
    probabilities = [float(reply["answers"][_QUESTION]["probabilities"][option]) for option in options]
    if not all(0 <= value <= 1 for value in probabilities) or not any(probabilities):
        return None
    return {"logprobs": normalized([math.log(max(value, _LEAST)) for value in probabilities]), "mass": None}
