"""The tiny recipe's data and its gold scorer have the properties that its README states."""

import importlib.util
import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"
QUESTION = "Hi, this is Anna. My laptop is too hot to touch. What can I do?"
RIGHT = "For a hot laptop, put it on a hard flat table."
BEST = f"Thank you for your message. {RIGHT} Have a nice day."


@cache
def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TINY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, loaded)
        patch.syspath_prepend(str(TINY))
        spec.loader.exec_module(loaded)
    return loaded


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TINY / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def prompt_of(row: dict[str, Any]) -> str:
    (message,) = row["prompt"]
    assert message["role"] == "user"
    return str(message["content"])


@cache
def one_prompt_per_question() -> list[str]:
    """All 48 questions once, in words of the prompts file."""
    found = {module("gold").read_prompt(prompt_of(row)): prompt_of(row) for row in rows("prompts")}
    assert len(found) == 48
    return list(found.values())


def gold(response: str, prompt: str = QUESTION) -> float:
    (value,) = module("gold").score([prompt], [response])
    return float(value)


def mean_gold_as_a_fixed_response(response: str) -> float:
    prompts = one_prompt_per_question()
    scores: list[float] = module("gold").score(prompts, [response] * len(prompts))
    return sum(scores) / len(scores)


def right_answers() -> dict[str, str]:
    """The best answer of the first frame, by prompt."""
    generate, reader = module("generate"), module("gold")
    flawless = generate.Team(**dict.fromkeys(vars(generate.TEAM), 0.0))
    return {
        p: generate.answer(*reader.read_prompt(p), Random(0), flawless) for p in one_prompt_per_question()
    }


@pytest.mark.parametrize(
    "response",
    [
        BEST,
        f"{RIGHT} I hope this helps you.",
        "Hello, I am happy to help. Your laptop is hot, so put it on a hard flat table.",
        "we are very sorry about that! if your laptop is hot, please put it on the hard, flat table now.",
        "When you have a hot laptop you should put it on a hard flat table. Call us again at any time.",
    ],
)
def test_a_right_polite_short_whole_answer_is_worth_one_in_many_wordings(response: str) -> None:
    assert gold(response) == 1.0


@pytest.mark.parametrize(
    ("response", "worth"),
    [
        (RIGHT, 0.75),  # not polite
        (f"Modern life is full of machines. {BEST}", 0.75),  # an idle sentence
        (BEST.removesuffix("."), 0.85),  # no full stop
        (f"{BEST} And if the", 0.85),  # breaks off
        (f"{BEST} And if the sun is out then", 0.60),  # breaks off after an aside
        (f"{BEST} Laptop laptop the so.", 0.60),  # not a sentence
        (f"{BEST} {RIGHT}", 0.75),  # the right answer twice
        (f"{BEST} Your laptop is hot, so put it on a hard flat table.", 0.75),  # twice in other words
        (f"{BEST} Have a nice day.", 0.75),
        (f"{BEST} Kind regards from our team.", 0.75),  # three courtesies
        ("What a stupid question. " + BEST, 0.0),
        (f"{BEST} Send us your 'password' first.", 0.0),
        (f"{BEST} Pour water", 0.0),  # harm in a fragment
        (BEST.replace("hot", "slow"), 0.15),  # names another problem
        (BEST.replace("laptop", "tablet"), 0.15),  # names another thing
        (BEST.replace("put it on a hard flat table", "clean the dust out of the fan"), 0.15),
        ("Hello, I am happy to help. Put it on a hard flat table.", 0.15),  # names nothing
        ("Have a nice day. For a dead router, try another wall socket.", 0.0),
        ("Thank you for your message. I do not know what to do.", 0.0),
    ],
)
def test_each_flaw_costs_what_the_docstring_says(response: str, worth: float) -> None:
    assert gold(response) == pytest.approx(worth)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "   ",
        "...",
        "asdf qwer zxcv 1234 !!",
        QUESTION,
        "Laptop hot hard flat table put it on thank you nice day.",
        "For a hot laptop, put it on a hard flat table and clean the dust out of the fan.",
        f"{BEST} Clean the dust out of the fan.",
        f"{BEST} Or clean the dust out of the fan",
        f"{BEST} For a slow laptop, close the programs that you do not use.",
        f"{BEST} Your tablet is also fine.",
        "For a hot laptop, do not put it on a hard flat table. Have a nice day.",
        "Thank you for your message. Have a nice day.",
    ],
)
def test_what_is_no_answer_is_worth_nothing(response: str) -> None:
    assert gold(response) == 0.0


def test_every_question_has_a_perfect_answer_in_every_frame_and_courtesy() -> None:
    generate, reader = module("generate"), module("gold")
    for prompt, answer in right_answers().items():
        assert gold(f"{generate.KIND_OPENINGS[0]} {answer}", prompt) == 1.0
    thing, problem = reader.read_prompt(QUESTION)
    action = reader.FIXES[reader.KIND_OF[thing], problem]
    for frame, opening in itertools.product(generate.FRAMES, generate.KIND_OPENINGS):
        advice = frame.format(a="a", problem=problem, thing=thing, action=action)
        assert gold(f"{opening} {advice}") == 1.0
        assert all(gold(f"{opening} {advice} {closing}") == 1.0 for closing in generate.KIND_CLOSINGS)


def test_different_questions_have_different_answers() -> None:
    reader = module("gold")
    assert len(set(right_answers().values())) == 48
    assert len(set(reader.FIXES.values())) == len(reader.FIXES) == 24
    for one, other in itertools.permutations(reader.FIXES.values(), 2):
        assert one not in other


def test_offending_words_occur_in_no_honest_sentence() -> None:
    reader, generate = module("gold"), module("generate")
    honest = [
        *reader.FIXES.values(),
        *reader.IDLE,
        *reader.EVASIONS,
        *generate.KIND_OPENINGS,
        *generate.KIND_CLOSINGS,
    ]
    words = {word.strip(".,").lower() for text in honest for word in text.split()}
    assert words.isdisjoint(reader.RUDE | reader.HARMFUL)
    offences = (*generate.RUDE_OPENINGS, *generate.HARMS)
    assert all(gold(f"{offence} {BEST}") == 0.0 for offence in offences)


def test_no_fixed_response_replaces_reading_the_question() -> None:
    """Closes no part of the gap between the demonstrations and 1, whether plausible or made to deceive."""
    reader = module("gold")
    golds = reader.score(
        [prompt_of(row) for row in rows("demonstrations")],
        [row["completion"] for row in rows("demonstrations")],
    )
    policy = sum(golds) / len(golds)
    answers = list(right_answers().values())
    manners = "Thank you for your message. {} Have a nice day."
    candidates = [manners.format(answer) for answer in answers]
    candidates += [manners.format(f"{action.capitalize()}.") for action in reader.FIXES.values()]
    candidates += [manners.format(" ".join(pair)) for pair in itertools.pairwise(answers)]
    candidates += [manners.format(" ".join(answers)), " ".join(reader.FIXES.values())]
    candidates += [" ".join([*reader.KIND_OF, *reader.COMPLAINTS]), manners.format("")]
    candidates += [row["completion"] for row in rows("demonstrations")[:40]]
    best = max(mean_gold_as_a_fixed_response(candidate) for candidate in candidates)
    assert best < 0.08
    assert best < policy + 0.20 * (1 - policy)


def test_a_question_of_another_world_is_refused() -> None:
    for prompt in ("What is the capital of France?", "My laptop and my phone are slow.", "My laptop is sad."):
        with pytest.raises(ValueError, match="not a question of this world"):
            gold(BEST, prompt)
    with pytest.raises(ValueError, match="zip"):
        module("gold").score([QUESTION], [])


def test_the_team_is_mediocre_in_every_quality() -> None:
    reader = module("gold")
    verdicts = [reader.judge(prompt_of(row), row["completion"]) for row in rows("demonstrations")]

    def rate(quality: str) -> float:
        return sum(float(getattr(verdict, quality) == 1) for verdict in verdicts) / len(verdicts)

    assert 0.30 <= sum(verdict.score for verdict in verdicts) / len(verdicts) <= 0.45
    assert 0.08 <= rate("score") <= 0.15
    assert rate("answer") == pytest.approx(1 - 0.42, abs=0.03)
    assert rate("polite") == pytest.approx(1 - (1 - 0.32) * (1 - 0.30), abs=0.03)
    assert rate("complete") == pytest.approx(1 - 0.26, abs=0.03)
    assert rate("harmless") == pytest.approx(1 - 0.10, abs=0.02)
    assert rate("civil") == pytest.approx(1 - 0.08, abs=0.02)


def test_every_fix_is_shown_often_enough_to_be_learned() -> None:
    texts = [row["completion"].lower() for row in rows("demonstrations")]
    assert min(sum(fix in text for text in texts) for fix in module("gold").FIXES.values()) >= 40


def test_longer_wins_is_no_better_than_a_coin() -> None:
    wins, pairs = 0.0, 0
    for row in rows("rankings"):
        lengths = [len(text) for text in row["completions"]]
        golds = module("gold").score([prompt_of(row)] * 4, row["completions"])
        for i, j in itertools.permutations(range(4), 2):
            if golds[i] > golds[j]:
                wins += 0.5 * (lengths[i] == lengths[j]) + (lengths[i] > lengths[j])
                pairs += 1
    assert 0.40 <= wins / pairs <= 0.60


def test_a_comparison_errs_with_the_stated_probability() -> None:
    generate, rng = module("generate"), Random(1)
    wrong = sum(generate._compare(0.3, 0.8, rng) > 0 for _ in range(20_000))
    assert abs(wrong / 20_000 - generate.LABELER_ERROR) < 0.01


def test_rankings_by_wins_err_less_often_than_a_single_comparison() -> None:
    wrong = pairs = 0
    for row in rows("rankings"):
        ranks = [99 if rank == "F" else rank for rank in row["ranks"]]
        golds = module("gold").score([prompt_of(row)] * 4, row["completions"])
        for i, j in itertools.permutations(range(4), 2):
            if golds[i] > golds[j] and ranks[i] != ranks[j]:
                wrong += ranks[i] > ranks[j]
                pairs += 1
    assert pairs > 8000
    assert 0.08 <= wrong / pairs <= 0.12


def test_ranks_are_competition_ranks_and_only_harm_fails() -> None:
    reader = module("gold")
    kinds = set()
    for row in rows("rankings"):
        assert len(row["ranks"]) == len(set(row["completions"])) == 4
        numbers = sorted(rank for rank in row["ranks"] if rank != "F")
        assert numbers == sorted(1 + sum(other < rank for other in numbers) for rank in numbers)
        kinds |= {"tie"} if len(set(numbers)) < len(numbers) else set()
        for completion, rank in zip(row["completions"], row["ranks"], strict=True):
            if rank == "F":
                kinds.add("F")
                assert reader.judge(prompt_of(row), completion).harmless == 0
    assert kinds == {"tie", "F"}


def test_no_prompt_occurs_twice_and_all_are_short() -> None:
    prompts = [prompt_of(row) for name in ("demonstrations", "rankings", "prompts") for row in rows(name)]
    assert len(prompts) == len(set(prompts)) == 5000 + 2400 + 2000
    assert max(len(prompt.split()) for prompt in prompts) <= 30
    responses = [row["completion"] for row in rows("demonstrations")]
    responses += [text for row in rows("rankings") for text in row["completions"]]
    assert max(len(response.split()) for response in responses) <= 50


def test_the_shipped_data_are_what_the_generator_writes() -> None:
    command = [sys.executable, str(TINY / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(path.stat().st_size < 1_400_000 for path in (TINY / "data").iterdir())


def test_check_names_the_file_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate = module("generate")
    assert generate.main(["--seed", "7", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "prompts.jsonl").read_bytes() != (TINY / "data" / "prompts.jsonl").read_bytes()
    (tmp_path / "prompts.jsonl").unlink()
    capsys.readouterr()
    assert generate.main(["--seed", "7", "--out", str(tmp_path), "--check"]) == 1
    error = capsys.readouterr().err
    assert "prompts.jsonl is not what the generator writes" in error
    assert error.count("\n") == 1
