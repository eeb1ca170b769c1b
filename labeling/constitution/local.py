"""A feedback model that runs here: texts by our own sampler, choices from the options' log-probabilities.

What it answers is a function of the request alone, so neither batches nor processes change anything, and an
answer that is in the cache is the one that the model would give.
"""

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from labeling.constitution.cache import Cache, key_of
from labeling.constitution.config import LocalSettings
from labeling.constitution.feedback import Answer, Chosen, Request, Written, normalized
from labeling.constitution.replies import without_reasoning
from rlhf.data.records import Turns
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.chat import encode_completion, encode_prompt
from rlhf.runs.date import freeze_date, given_date, run_date
from rlhf.runs.files import tree_hash
from rlhf.runs.progress import progress
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import from_lists, responses_text
from rlhf.settings.groups import ModelSettings, SamplingSettings

ROLE = "feedback"
TEXT_NOISE = 2**44
"""Stands where an iteration would in a noise key: no other stage shares this noise."""
_AT_ONCE = 4
"""Batches that are answered, and put into the cache, together."""

Chunk = list[Request]


class LocalModel:
    """Answers from a model here, in this process or shared out among several."""

    def __init__(self, settings: LocalSettings, folder: str, device: torch.device, cache: Cache) -> None:
        self.name = _identity(folder, settings)
        self._settings, self._folder, self._device, self._cache = settings, folder, device, cache
        self._answerer: _Answerer | None = None

    def ask(self, requests: Sequence[Request], desc: str) -> list[Answer | None]:
        """As `Model.ask`; a question that does not fit into the model's context has no answer.

        Raises:
            UserError: there is no such model, or its tokenizer cannot tell the options apart.
        """
        keys = [key_of(self.name, request.content) for request in requests]
        unknown = {k: r for k, r in zip(keys, requests, strict=True) if self._cache.get(k) is None}
        if unknown:
            with progress(len(unknown), desc) as bar:

                def keep(request: Request, answer: Answer | None) -> None:
                    key = key_of(self.name, request.content)
                    self._cache.put(key, _to_json(answer), {"requests": 1} | _counts(answer))
                    bar.update()

                self._answer(_chunks(list(unknown.values()), self._settings.batch_size * _AT_ONCE), keep)
        return [_from_json(self._cache.get(key)) for key in keys]

    def _answer(self, chunks: Sequence[Chunk], keep: Callable[[Request, Answer | None], None]) -> None:
        if self._settings.processes == 1:
            self._answerer = self._answerer or _Answerer(self._settings, self._folder, self._device)
            for chunk in chunks:
                for request, answer in zip(chunk, self._answerer.answer(chunk), strict=True):
                    keep(request, answer)
            return
        context = multiprocessing.get_context("spawn")
        numbers = context.SimpleQueue()
        for number in range(self._settings.processes):
            numbers.put(number)
        with ProcessPoolExecutor(
            self._settings.processes,
            mp_context=context,
            initializer=_start,
            initargs=(self._settings, self._folder, str(self._device), numbers, _day()),
        ) as pool:
            work = {pool.submit(_answer_there, chunk): chunk for chunk in chunks}
            for done in as_completed(work):
                for request, answer in zip(work[done], done.result(), strict=True):
                    keep(request, answer)


class _Answerer:
    """One copy of the model."""

    def __init__(self, settings: LocalSettings, folder: str, device: torch.device) -> None:
        self._settings, self._folder = settings, folder
        model = ModelSettings(path=folder, precision=settings.precision)
        self._backbone = Backbone.load(folder, settings=model, device=device)
        if settings.chat_template is not None:
            self._backbone.tokenizer.chat_template = settings.chat_template
        self._role = REFERENCE
        if settings.adapter is not None:
            self._backbone.load_adapter(ROLE, Path(settings.adapter))
            self._role = ROLE

    def answer(self, requests: Sequence[Request]) -> list[Answer | None]:
        found: list[Answer | None] = [None] * len(requests)
        groups: dict[tuple[int, float, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            kind = (request.max_tokens, request.temperature, request.options)
            groups.setdefault(kind, []).append(number)
        for (max_tokens, _, options), numbers in groups.items():
            prompts = {n: self._prompt_ids(requests[n].messages) for n in numbers}
            fitting = [n for n in numbers if len(prompts[n]) + max_tokens <= self._backbone.max_length]
            if not fitting:
                continue
            answer = self._choose if options else self._write
            part = [requests[n] for n in fitting]
            for n, each in zip(fitting, answer(part, [prompts[n] for n in fitting]), strict=True):
                found[n] = each
        return found

    def _prompt(self, messages: Turns) -> str | Turns:
        """The conversation for the chat template; plain text for a model that has none."""
        if self._backbone.tokenizer.chat_template is not None:
            return messages
        return "".join(f"{turn.role}: {turn.content}\n\n" for turn in messages) + "assistant:"

    def _prompt_ids(self, messages: Turns) -> list[int]:
        return encode_prompt(self._backbone.tokenizer, self._prompt(messages))

    def _write(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Sequence[Answer]:
        settings = SamplingSettings(
            max_response_tokens=requests[0].max_tokens,
            temperature=requests[0].temperature,
            batch_size=self._settings.batch_size,
        )
        keys = [(TEXT_NOISE, request.seed) for request in requests]
        rollouts = sample(self._backbone, prompts, role=self._role, settings=settings, keys=keys, seed=0)
        texts = responses_text(self._backbone, rollouts, settings)
        logprobs = rollouts.sampled_logprobs_BT.sum(1).tolist()
        ended = rollouts.ended_B.tolist()
        return [_written(t, p, has_ended=e) for t, p, e in zip(texts, logprobs, ended, strict=True)]

    def _choose(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Sequence[Answer]:
        """From the log-probabilities of the tokens in which the options differ, all read from one pass.

        Raises:
            UserError: they are no numbers.
        """
        split = [self._option_ids(request) for request in requests]
        contexts = [[*ids, *shared] for ids, (shared, _) in zip(prompts, split, strict=True)]
        rollouts = from_lists(contexts, [tokens[:1] for _, tokens in split], self._backbone)
        found: list[Answer | None] = [None] * len(requests)
        with self._backbone.role(self._role), torch.inference_mode():
            for batch in rollouts.micro_batches(self._settings.batch_tokens):
                hidden_BH = self._backbone.hidden(batch.tokens, wanted_M=batch.before_response_N)
                logprobs_BV = torch.log_softmax(self._backbone.logits(hidden_BH), dim=-1)
                for place, row in enumerate(batch.rows):
                    own = logprobs_BV[place, split[row][1]]
                    kept = tuple(normalized(own.tolist()))
                    if not all(math.isfinite(value) for value in kept):
                        raise self._broken()
                    found[row] = Chosen(logprobs=kept, mass=float(own.exp().sum()))
        return [each for each in found if each is not None]

    def _broken(self) -> UserError:
        return UserError(
            "the model's log-probabilities are not finite numbers",
            where=self._folder,
            fix="See that its weights are whole, and hold them in fp32 (feedback.local.precision).",
        )

    def _option_ids(self, request: Request) -> tuple[list[int], list[int]]:
        """The ids with which all options begin after the prompt (a space, say), and the next one of each.

        Raises:
            UserError: two options do not differ there either.
        """
        tokenizer, prompt = self._backbone.tokenizer, self._prompt(request.messages)
        space = " " if isinstance(prompt, str) else ""
        options = [
            encode_completion(tokenizer, prompt, space + option, eos=self._backbone.eos_ids)
            for option in request.options
        ]
        different = (place for place, ids in enumerate(zip(*options, strict=False)) if len(set(ids)) > 1)
        num_shared = next(different, min(len(ids) for ids in options))
        tokens = [ids[num_shared] for ids in options if len(ids) > num_shared]
        if len(set(tokens)) < len(options):
            raise UserError(
                f"its tokenizer cannot tell the options {', '.join(request.options)} apart",
                where=self._folder,
                fix="Choose another feedback model, or serve it (feedback.endpoint) and read votes.",
            )
        return options[0][:num_shared], tokens


_worker: _Answerer | None = None
"""The copy of the model in a process that answers for another one."""


def _start(
    settings: LocalSettings,
    folder: str,
    device: str,
    numbers: "multiprocessing.SimpleQueue[int]",
    day: tuple[str, str | None],
) -> None:
    global _worker
    freeze_date(day[0], given=day[1])
    number = numbers.get()
    if device.startswith("cuda"):
        device = f"cuda:{number % torch.cuda.device_count()}"
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // settings.processes))
    _worker = _Answerer(settings, folder, torch.device(device))


def _day() -> tuple[str, str | None]:
    """The day that chat templates write, and the one that the recipe names."""
    given = given_date()
    return run_date().isoformat(), None if given is None else given.isoformat()


def _answer_there(chunk: Chunk) -> list[Answer | None]:
    assert _worker is not None
    return _worker.answer(chunk)


def _identity(folder: str, settings: LocalSettings) -> str:
    """What the answers depend on apart from the request."""
    name = tree_hash(Path(folder))[:16] if Path(folder).is_dir() else folder
    parts = [f"{Path(folder).name}@{name}", settings.precision]
    if settings.adapter is not None:
        parts.append(tree_hash(Path(settings.adapter))[:16])
    if settings.chat_template is not None:
        parts.append(key_of(settings.chat_template)[:16])
    return " ".join(parts)


def _chunks(requests: list[Request], size: int) -> list[Chunk]:
    """Requests of one kind together, in chunks."""
    ordered = sorted(requests, key=lambda each: (bool(each.options), each.max_tokens))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _written(text: str, logprob: float | None, *, has_ended: bool) -> Written:
    """The answer in a text; one that no EOS ended was cut off."""
    said = without_reasoning(text)
    problem = said.problem if has_ended else "cut_off"
    return Written(text=said.text.strip(), logprob=None if said.reasoned else logprob, problem=problem)


def _counts(answer: Answer | None) -> dict[str, int]:
    """An empty text is of no use, and asked again the model would say the same."""
    if answer is None:
        return {"too_long": 1}
    counts = {"cut_off": 1} if isinstance(answer, Written) and answer.problem else {}
    if isinstance(answer, Written) and not answer.text:
        return counts | {"unusable_answer": 1, "unanswered": 1}
    return counts | {"answers": 1}


def _to_json(answer: Answer | None) -> object:
    if answer is None:
        return {}
    return asdict(answer)


def _from_json(kept: dict[str, Any] | None) -> Answer | None:
    if not kept:
        return None
    if "problem" in kept:
        return Written(**kept)
    if "text" in kept:  # by an earlier program, which kept reasoning with it, and not whether it had ended
        return _written(kept["text"], kept["logprob"], has_ended=True)
    return Chosen(**(kept | {"logprobs": tuple(kept["logprobs"])}))
