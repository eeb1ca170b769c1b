"""A feedback model behind an endpoint: texts, and choices read in whichever way the endpoint offers."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from labeling.constitution.cache import Cache
from labeling.constitution.config import EndpointSettings
from labeling.constitution.endpoint import Call, Endpoint, Json
from labeling.constitution.feedback import (
    Answer,
    Chosen,
    Request,
    Written,
    is_text,
    log_sum,
    normalized,
    seed_of,
)
from labeling.constitution.replies import said_in, vote_in, without_reasoning
from rlhf.errors import UserError
from rlhf.model.chat import prompt_text

CHAT, TYPED = "chat/completions", "systemone"
NUM_TOP = 20
"""Tokens whose log-probabilities are asked for: the most that hosted endpoints give."""
_AROUND = " \t\n()[]{}*_`'\".:,ĠĊ▁"
"""May stand around an option's letter; the last three are spaces in a tokenizer's own spelling."""
MIN_MASS = 0.01
"""Of all options together: where they have less, the model is saying something else."""
_QUESTION = "choice"
_MANY_CHOICES = 10
_LOST = {
    "cut_off": "were cut off",
    "refused": "were refused",
    "reasoned": "begin with reasoning",
    "mass": "hardly name an option",
}
_LEAST = 1e-9
"""Of a probability that an endpoint calls 0, or leaves no room for."""


class ServedModel:
    """Asks an endpoint; a choice is read from log-probabilities, from votes, or from a typed decision."""

    def __init__(self, settings: EndpointSettings, cache: Cache) -> None:
        self.name = settings.model
        self._settings = settings
        self._endpoint = Endpoint(settings, cache)
        self._answers: str = settings.answers
        self._lost: Counter[str] = Counter()
        """Why answers of the last questions are of no use."""

    def ask(self, requests: Sequence[Request], desc: str) -> list[Answer | None]:
        """As `Model.ask`.

        Raises:
            UserError: as `Endpoint.call`, or nothing that it says can be used.
        """
        writing = [number for number, request in enumerate(requests) if not request.options]
        choosing = [number for number, request in enumerate(requests) if request.options]
        found: list[Answer | None] = [None] * len(requests)
        self._lost.clear()
        for numbers, answer in ((writing, self._write), (choosing, self._choose)):
            part = [requests[number] for number in numbers]
            for number, each in zip(numbers, answer(part, desc) if part else [], strict=True):
                found[number] = each
        if requests and not any(isinstance(each, Chosen) or (each and is_text(each)) for each in found):
            raise self._of_no_use(len(requests), writing=bool(writing))
        return found

    def _of_no_use(self, number: int, *, writing: bool) -> UserError:
        lost = [f"{n:,} {_LOST[name]}" for name, n in self._lost.most_common()]
        if self._endpoint.last_failure:
            lost.append(f"the last: {self._endpoint.last_failure}")
        return UserError(
            f"none of {number:,} answers can be used ({'; '.join(lost)})",
            where=f"{self._settings.url}, model {self._settings.model}",
            fix=self._way_out(writing),
        )

    def _way_out(self, writing: bool) -> str:
        fix = "Choose another model, or another way of reading choices (`answers`)."
        status = self._endpoint.last_status
        is_refused = status is not None and 400 <= status < 500
        if self._lost["cut_off"]:
            name = "text.max_tokens" if writing else "vote_tokens"
            fix = f"Give it more room (`{name}`), also for its reasoning, or turn that off. {fix}"
        elif self._lost["reasoned"] or self._lost["mass"]:
            fix = f"Read votes, with room for reasoning (`answers: votes`, `vote_tokens: 2000`). {fix}"
        if writing and self._settings.text_logprobs and is_refused:
            fix = "If it refuses the log-probabilities of texts, set `text_logprobs: false`. " + fix
        return fix

    def _write(self, requests: Sequence[Request], desc: str) -> Sequence[Answer | None]:
        more = {"logprobs": True} if self._settings.text_logprobs else {}
        calls = [Call(CHAT, self._chat(request) | more, _text, count=_problems) for request in requests]
        found = [None if kept is None else _written(kept) for kept in self._endpoint.call(calls, desc)]
        self._lost.update(each.problem for each in found if each is not None and each.problem)
        return found

    def _choose(self, requests: Sequence[Request], desc: str) -> Sequence[Answer | None]:
        if self._answers == "auto":
            self._answers = self._best_way(requests[0], desc)
        if self._answers == "votes":
            return self._count_votes(requests, desc)
        calls = [
            self._typed_call(request) if self._answers == "typed" else self._logprobs_call(request)
            for request in requests
        ]
        return [self._chosen(kept) for kept in self._endpoint.call(calls, desc)]

    def _chosen(self, kept: Json | None) -> Chosen | None:
        """No choice where the model reasons first, or hardly thinks of the options."""
        if kept is None:
            return None
        mass = kept["mass"]
        lost = (
            "reasoned" if kept["logprobs"] is None else "mass" if mass is not None and mass < MIN_MASS else ""
        )
        if lost:
            self._lost[lost] += 1
            return None
        return Chosen(logprobs=tuple(kept["logprobs"]), mass=mass, method=self._answers)

    def _best_way(self, request: Request, desc: str) -> str:
        """Log-probabilities if a first reply has some of the options, else votes.

        The reply is kept, and asked for once.
        """

        def read(reply: Json) -> Any:
            choice = reply["choices"][0]
            tokens = (choice.get("logprobs") or {}).get("content") or [{}]
            found = option_logprobs(reply, request.options) if tokens[0].get("top_logprobs") else None
            said = said_in(choice)
            has_logprobs = found is not None and found["mass"] >= MIN_MASS and not said.reasoned
            is_reply = bool(tokens[0].get("top_logprobs")) or said.text or said.problem or said.reasoned
            return {"has_logprobs": has_logprobs} if is_reply else None

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
        return Call(CHAT, body, partial(_option_reply, options=request.options))

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
        calls = [self._vote_call(request, n) for request in requests for n in range(num)]
        self._check_first(self._endpoint.call(calls[:num], desc))
        kept = self._endpoint.call(calls, desc)
        self._lost.update(each["problem"] for each in kept if each is not None and each["problem"])
        votes = [None if each is None else each["vote"] for each in kept]
        _warn_if_greedy(votes, num)
        return [
            from_votes([vote for vote in votes[n * num : (n + 1) * num] if vote is not None], request.options)
            for n, request in enumerate(requests)
        ]

    def _vote_call(self, request: Request, number: int) -> Call:
        body = self._chat(request) | {
            "seed": seed_of("vote", request.seed, number),
            self._settings.length_field: self._settings.vote_tokens,
        }
        read = partial(_vote, options=request.options)
        return Call(CHAT, body, read, reading="vote without reasoning", count=_problems)

    def _check_first(self, votes: Sequence[Json | None]) -> None:
        """Before thousands of votes are paid for: does a vote have room?

        Raises:
            UserError: the first ones were all cut off before they named an option.
        """
        if any(each is None or each["vote"] is not None or each["problem"] != "cut_off" for each in votes):
            return
        reasoned = any(each is not None and each["reasoned"] for each in votes)
        why = (
            "the model reasons before it answers" if reasoned else "the model does not begin with the letter"
        )
        raise UserError(
            f"{why}, and {self._settings.vote_tokens} tokens are not enough for it",
            where=f"{self._settings.url}, model {self._settings.model}",
            fix="Raise `labeling.constitution.feedback.endpoint.vote_tokens` (2000, say), or turn the "
            "model's reasoning off. What it has answered is kept.",
        )


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


def _option_reply(reply: Json, options: Sequence[str]) -> Json | None:
    """As `option_logprobs`; without any where the first token begins a train of thought."""
    if said_in(reply["choices"][0]).reasoned:
        return {"logprobs": None, "mass": None}
    return option_logprobs(reply, options)


def _text(reply: Json) -> Json | None:
    choice = reply["choices"][0]
    said = said_in(choice)
    if not said.text and not said.problem:
        return None
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprob = sum(float(token["logprob"]) for token in tokens) if tokens and not said.reasoned else None
    if logprob is not None and not math.isfinite(logprob):
        logprob = None
    return {"text": said.text, "logprob": logprob, "problem": said.problem, "reasoned": said.reasoned}


def _written(kept: Json) -> Written:
    """What is kept of a text; an earlier program kept reasoning with it, and not whether it was cut off."""
    if "problem" in kept:
        return Written(text=kept["text"], logprob=kept["logprob"], problem=kept["problem"])
    said = without_reasoning(kept["text"])
    logprob = None if said.reasoned else kept["logprob"]
    return Written(text=said.text, logprob=logprob, problem=said.problem)


def _vote(reply: Json, options: Sequence[str]) -> Json | None:
    """The vote; none, and not asked for again, where the reply was cut off or refused."""
    said = said_in(reply["choices"][0])
    vote = vote_in(said, options)
    if vote is None and not said.problem:
        return None
    return {"vote": vote, "problem": "" if vote else said.problem, "reasoned": said.reasoned}


def _problems(kept: Json) -> dict[str, int]:
    """What is counted of a reply."""
    counts = {kept["problem"]: 1} if kept["problem"] else {}
    return counts | ({"reasoned": 1} if kept["reasoned"] else {})


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
