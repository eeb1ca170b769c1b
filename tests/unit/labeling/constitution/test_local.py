"""A feedback model that runs here, on random weights: its answers are its own, however it is asked."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from labeling.constitution.cache import Cache
from labeling.constitution.config import LocalSettings
from labeling.constitution.feedback import Answer, Chosen, Request, Written
from labeling.constitution.local import LocalModel
from labeling.constitution.metrics import running_metrics
from rlhf.data.records import Message
from rlhf.errors import UserError
from tests.support.small import write_small_model

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_small_model(folder)
    return folder


def request(number: int, *, options: tuple[str, ...] = (), length: int = 3) -> Request:
    words = " ".join(f"w{(number * 7 + n) % 56}" for n in range(length))
    tokens = 1 if options else 8
    return Request(messages=(Message("user", words),), options=options, max_tokens=tokens, seed=number)


CHOICES = [request(n, options=("w1", "w2"), length=2 + n) for n in range(7)]
TEXTS = [request(n, length=2 + n) for n in range(7)]


def ask(folder: Path, cache: Path, requests: list[Request], **settings: object) -> list[Answer | None]:
    chosen = LocalSettings.model_validate({"path": str(folder), "chat_template": TEMPLATE, **settings})
    with Cache(cache, scope="test") as opened:
        return LocalModel(chosen, str(folder), torch.device("cpu"), opened).ask(requests, "asking")


def test_a_choice_has_the_log_probabilities_of_the_model_itself(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for asked, found in zip(CHOICES, ask(folder, tmp_path / "a.sqlite", CHOICES), strict=True):
        ids = tokenizer(asked.messages[0].content, return_tensors="pt").input_ids
        with torch.no_grad():
            logprobs = model(ids).logits[0, -1].log_softmax(-1)
        own = logprobs[tokenizer.convert_tokens_to_ids(["w1", "w2"])]
        assert isinstance(found, Chosen)
        assert found.log_odds == pytest.approx(float(own[0] - own[1]), abs=1e-4)
        assert found.mass == pytest.approx(float(own.exp().sum()), abs=1e-5)


def test_what_the_options_share_at_their_beginning_is_read_before_them(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = request(3, options=("w5 w1", "w5 w2"))
    [found] = ask(folder, tmp_path / "a.sqlite", [asked])
    ids = tokenizer(asked.messages[0].content + " w5", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    first, second = logits[tokenizer.convert_tokens_to_ids(["w1", "w2"])]
    assert isinstance(found, Chosen)
    assert found.log_odds == pytest.approx(float(first - second), abs=1e-4)


def test_neither_batches_nor_neighbours_change_an_answer(folder: Path, tmp_path: Path) -> None:
    together = ask(folder, tmp_path / "a.sqlite", [*CHOICES, *TEXTS])
    small = ask(folder, tmp_path / "b.sqlite", [*TEXTS[::-1]], batch_size=2)
    alone = ask(folder, tmp_path / "c.sqlite", CHOICES[3:4], batch_tokens=1)
    assert [each.text for each in small[::-1] if isinstance(each, Written)] == [
        each.text for each in together[7:] if isinstance(each, Written)
    ]
    [one], same = alone, together[3]
    assert isinstance(one, Chosen)
    assert isinstance(same, Chosen)
    assert one.log_odds == pytest.approx(same.log_odds, abs=1e-4)


@pytest.mark.slow
def test_processes_share_the_questions_and_answer_as_one_would(folder: Path, tmp_path: Path) -> None:
    one = ask(folder, tmp_path / "a.sqlite", [*CHOICES, *TEXTS], batch_size=1)
    two = ask(folder, tmp_path / "b.sqlite", [*CHOICES, *TEXTS], batch_size=1, processes=2)
    assert [each.text for each in two if isinstance(each, Written)] == [
        each.text for each in one if isinstance(each, Written)
    ]
    assert [each.log_odds for each in two if isinstance(each, Chosen)] == pytest.approx(
        [each.log_odds for each in one if isinstance(each, Chosen)], abs=1e-4
    )


def test_an_adapter_changes_what_the_model_says(folder: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(
        str(tmp_path / "adapter")
    )
    plain = ask(folder, tmp_path / "a.sqlite", CHOICES)
    adapted = ask(folder, tmp_path / "a.sqlite", CHOICES, adapter=str(tmp_path / "adapter"))  # one cache
    for one, other in zip(plain, adapted, strict=True):
        assert isinstance(one, Chosen)
        assert isinstance(other, Chosen)
        assert one.log_odds != pytest.approx(other.log_odds, abs=1e-3)


def test_what_does_not_fit_has_no_answer_and_the_rest_has(folder: Path, tmp_path: Path) -> None:
    found = ask(folder, tmp_path / "a.sqlite", [request(1, length=200), TEXTS[0]])
    assert found[0] is None
    assert isinstance(found[1], Written)
    with Cache(tmp_path / "a.sqlite", scope="test") as cache:
        assert cache.counts() == {"requests": 2, "answers": 1, "too_long": 1, "cut_off": 1}


def test_an_empty_text_is_counted_as_unusable_and_not_as_an_answer(folder: Path, tmp_path: Path) -> None:
    first = request(1)
    requests = [Request(messages=first.messages, max_tokens=1, seed=seed) for seed in range(200)]
    found = ask(folder, tmp_path / "a.sqlite", requests)
    empty = sum(isinstance(each, Written) and not each.text for each in found)
    assert 0 < empty < 200
    problems = {(bool(each.text), each.problem) for each in found if isinstance(each, Written)}
    assert (True, "cut_off") in problems  # one token that is not the end
    assert (True, "") not in problems
    with Cache(tmp_path / "a.sqlite", scope="test") as cache:
        metrics = running_metrics(cache.counts(), None)
    assert metrics["parse_failure_rate"] == empty / 200
    assert (metrics["answers"], metrics["unanswered"]) == (200 - empty, empty)


def test_a_model_of_broken_weights_is_said_and_nothing_is_kept_of_it(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="not finite numbers"):
        ask(tmp_path / "broken", tmp_path / "a.sqlite", CHOICES)
    with Cache(tmp_path / "a.sqlite", scope="test") as cache:
        assert cache.counts() == {}


def test_a_model_without_a_chat_template_is_asked_in_plain_text(folder: Path, tmp_path: Path) -> None:
    found = ask(folder, tmp_path / "a.sqlite", [CHOICES[0], TEXTS[0]], chat_template=None)
    assert isinstance(found[0], Chosen)
    assert isinstance(found[1], Written)


def test_what_was_answered_is_not_computed_again(folder: Path, tmp_path: Path) -> None:
    first = ask(folder, tmp_path / "a.sqlite", [*CHOICES, *CHOICES])
    assert ask(folder, tmp_path / "a.sqlite", CHOICES) == first[:7] == first[7:]
    with Cache(tmp_path / "a.sqlite", scope="test") as cache:
        assert cache.counts()["requests"] == len(CHOICES)


def test_options_that_the_tokenizer_cannot_tell_apart_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot tell the options yes, no apart"):
        ask(folder, tmp_path / "a.sqlite", [request(1, options=("yes", "no"))])  # both unknown to it
