"""Write the tiny recipe's data: a help desk's users, a mediocre team's answers, unsure labelers' rankings.

    python configs/tiny/generate.py            # write configs/tiny/data
    python configs/tiny/generate.py --check    # exit 1 unless the data on disk are what this would write
    python configs/tiny/generate.py --seed 7 --out elsewhere

`gold.py` beside this file defines the world (things, problems, fixes) and judges a response exactly. Here
are the two human sources of error that learning from rankings has to overcome:

- the team: each quality of an answer fails on its own, with the probabilities of `Team`;
- the labelers: each comparison of two answers comes out wrong with probability `LABELER_ERROR`.

Only the standard library is needed, and the bytes written depend on the seed alone.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from gold import COMPLAINTS, EVASIONS, FIXES, IDLE, KIND_OF, KINDS, read_prompt, score

DATA = Path(__file__).resolve().parent / "data"
SEED = 1
NUM_DEMONSTRATIONS, NUM_RANKINGS, NUM_PROMPTS = 5000, 2400, 2000
NUM_COMPLETIONS = 4
LABELER_ERROR = 0.15


@dataclass(frozen=True)
class Team:
    """How a team answers: probabilities, each drawn independently of the others."""

    other_problem: float = 0.01
    """The fix for another problem of the same thing."""
    other_thing: float = 0.01
    """The fix for the same problem of another thing."""
    other_action: float = 0.0
    """Names thing and problem rightly, but gives the fix for another problem."""
    evasion: float = 0.40
    """No fix at all."""
    harmful: float = 0.10
    """An additional dangerous or prying sentence."""
    idle: float = 0.40
    """An additional sentence that says nothing; no answer holds both kinds."""
    rude_opening: float = 0.08
    """Begins with an insult."""
    kind_opening: float = 0.32
    """Begins with a courtesy."""
    kind_closing: float = 0.30
    """Ends with a courtesy."""
    unfinished: float = 0.26
    """Breaks off in a new sentence, or lacks the last full stop."""
    garbled: float = 0.0
    """Words are lost, out of place or from another answer: what a model writes that has not understood."""


TEAM = Team()
"""Who writes the demonstrations: mediocre, but in whole sentences."""
DRAFTS = replace(TEAM, other_action=0.02, evasion=0.35, garbled=0.10)
"""Who writes what the labelers rank: drafts of a small model that was trained on the team."""

# fmt: off
NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Greta", "Henry", "Ida", "Jonas", "Karin", "Leo",
    "Maria", "Nora", "Oscar", "Paula", "Rosa", "Simon", "Tara", "Victor", "Wanda", "Yusuf", "Zoe", "Milan",
)
# fmt: on
GREETINGS = ("", "Hi.", "Hello, {name} here.", "Hi, this is {name}.", "Good morning, my name is {name}.")
STATEMENTS = (
    "My {thing} {complaint}.",
    "My new {thing} {complaint}.",
    "The {thing} in our {room} {complaint}.",
    "I have a {thing} that {complaint}.",
    "Since {day} my {thing} {complaint}.",
)
ROOMS = ("kitchen", "office", "school", "hall", "shop", "library")
DAYS = ("Monday", "Tuesday", "Friday", "yesterday", "last week", "this morning")
DETAILS = (
    "",
    "",
    "It is two years old.",
    "I need it for work.",
    "{giver} gave it to me.",
    "I bought it in {month}.",
)
MONTHS = ("March", "April", "June", "August", "October")
QUESTIONS = ("What can I do?", "How do I fix that?", "Can you help me?", "Please help.", "")

FRAMES = (
    "For {a} {problem} {thing}, {action}.",
    "To fix your {problem} {thing}, {action}.",
    "If your {thing} is {problem}, {action}.",
    "Your {thing} is {problem}, so {action}.",
)
KIND_OPENINGS = (
    "Thank you for your message.",
    "Hello, I am happy to help.",
    "I am sorry to hear that.",
    "Hi and thanks for writing.",
)
KIND_CLOSINGS = (
    "Have a nice day.",
    "I hope this helps you.",
    "Please ask us again any time.",
    "Kind regards from our team.",
)
RUDE_OPENINGS = ("What a stupid question.", "Only a fool would ask that.", "Stop wasting my time.")
HARMS = (
    "Send us your password first.",
    "Tell us your bank card number.",
    "Pour some water over it.",
    "Open the power supply with a fork.",
)
FRAGMENTS = ("Also you", "And if the", "Then we can", "But it may")


def questions(rng: Random) -> Iterator[str]:
    """Distinct prompts without end, every pair of thing and problem equally often."""
    pairs = [(thing, problem) for kind, problem in FIXES for thing in KINDS[kind]]
    seen: set[str] = set()
    while True:
        rng.shuffle(pairs)
        for thing, problem in pairs:
            text = question(thing, problem, rng)
            while text in seen:
                text = question(thing, problem, rng)
            seen.add(text)
            yield text


def question(thing: str, problem: str, rng: Random) -> str:
    """One way to complain that `thing` is `problem`."""
    statement = rng.choice(STATEMENTS)
    parts = (rng.choice(GREETINGS), statement, rng.choice(DETAILS), rng.choice(QUESTIONS))
    text = " ".join(part for part in parts if part)
    name, giver = rng.sample(NAMES, 2)
    return text.format(
        thing=thing,
        complaint=rng.choice(COMPLAINTS[problem]),
        name=name,
        giver=giver,
        room=rng.choice(ROOMS),
        day=rng.choice(DAYS),
        month=rng.choice(MONTHS),
    )


def answer(thing: str, problem: str, rng: Random, team: Team = TEAM) -> str:
    """What one member of `team` writes to someone whose `thing` is `problem`."""
    body = [_advice(thing, problem, rng, team)]
    draw = rng.random()
    if draw < team.harmful:
        body.insert(rng.randrange(2), rng.choice(HARMS))
    elif draw < team.harmful + team.idle:
        body.insert(rng.randrange(2), _sentence(rng.choice(IDLE)))
    draw = rng.random()
    if draw < team.rude_opening:
        body.insert(0, rng.choice(RUDE_OPENINGS))
    elif draw < team.rude_opening + team.kind_opening:
        body.insert(0, rng.choice(KIND_OPENINGS))
    if rng.random() < team.kind_closing:
        body.append(rng.choice(KIND_CLOSINGS))
    text = " ".join(body)
    if rng.random() < team.unfinished:
        text = text.removesuffix(".") if rng.random() < 0.5 else f"{text} {rng.choice(FRAGMENTS)}"
    return _garble(text, rng) if team.garbled and rng.random() < team.garbled else text


def _garble(text: str, rng: Random) -> str:
    """`text` with a stretch of words lost, put in from another answer, or replaced by one."""
    words = text.split()
    start = rng.randrange(len(words) - 2)
    other = answer(*rng.choice([(t, p) for kind, p in FIXES for t in KINDS[kind]]), rng).split()
    at = rng.randrange(len(other) - 2)
    strange = other[at : at + rng.randint(2, 5)]
    way = rng.choice(("lost", "put in", "replaced", "continued"))
    if way == "lost":
        return " ".join(words[:start] + words[start + rng.randint(2, 4) :])
    if way == "put in":
        return " ".join(words[:start] + strange + words[start:])
    if way == "replaced":
        return " ".join(words[:start] + strange + words[start + len(strange) :])
    return " ".join(words[: start + 2] + other[at:])


def _advice(thing: str, problem: str, rng: Random, team: Team) -> str:
    """The sentence that should hold the fix, right or wrong."""
    others = [other for kind, other in FIXES if kind == KIND_OF[thing] and other != problem]
    draw = rng.random()
    action = FIXES[KIND_OF[thing], problem]
    if (draw := draw - team.evasion) < 0:
        return _sentence(rng.choice(EVASIONS))
    if (draw := draw - team.other_action) < 0:
        action = FIXES[KIND_OF[thing], rng.choice(others)]
    elif (draw := draw - team.other_problem) < 0:
        problem = rng.choice(others)
        action = FIXES[KIND_OF[thing], problem]
    elif draw < team.other_thing:
        thing = rng.choice([t for t, kind in KIND_OF.items() if t != thing and (kind, problem) in FIXES])
        action = FIXES[KIND_OF[thing], problem]
    article = "an" if problem[0] in "aeiou" else "a"
    return _sentence(
        rng.choice(FRAMES).removesuffix(".").format(a=article, problem=problem, thing=thing, action=action)
    )


def _sentence(text: str) -> str:
    text = text.replace(" i ", " I ")
    return f"{text[0].upper()}{text[1:]}."


def ranking(golds: Sequence[float], completions: Sequence[str], rng: Random) -> list[int | str]:
    """One labeler's ranks of completions: 1 is best, equal ranks are a tie, "F" is failed.

    A labeler fails each completion that holds a harmful sentence, and overlooks it with probability
    `LABELER_ERROR`. The others are compared two by two, each pair once, and ranked by how many comparisons
    they win, a tie counting half. A comparison comes out wrong with that probability: the opposite of the
    gold order, or a coin's choice where gold is equal.
    """
    failed = [any(harm in text for harm in HARMS) and rng.random() >= LABELER_ERROR for text in completions]
    left = [item for item, fail in enumerate(failed) if not fail]
    wins = dict.fromkeys(left, 0.0)
    for item, other in itertools.combinations(left, 2):
        won = (1 + _compare(golds[item], golds[other], rng)) / 2
        wins[item] += won
        wins[other] += 1 - won
    return [
        "F" if fail else 1 + sum(w > wins[item] for w in wins.values()) for item, fail in enumerate(failed)
    ]


def _compare(gold: float, other: float, rng: Random) -> int:
    truth = (gold > other) - (gold < other)
    if rng.random() >= LABELER_ERROR:
        return truth
    return -truth or rng.choice((-1, 1))


def records(seed: int) -> dict[str, list[dict[str, object]]]:
    """Every file's rows, by file name. No two rows share a prompt."""
    asked = questions(Random(f"{seed} questions"))
    rng = Random(f"{seed} demonstrations")
    demonstrations: list[dict[str, object]] = []
    for text in itertools.islice(asked, NUM_DEMONSTRATIONS):
        demonstrations.append({"prompt": _user(text), "completion": answer(*read_prompt(text), rng)})
    rng = Random(f"{seed} rankings")
    rankings: list[dict[str, object]] = []
    for text in itertools.islice(asked, NUM_RANKINGS):
        completions = _distinct_answers(text, rng)
        golds = score([text] * NUM_COMPLETIONS, completions)
        ranks = ranking(golds, completions, rng)
        rankings.append({"prompt": _user(text), "completions": completions, "ranks": ranks})
    prompts: list[dict[str, object]] = [
        {"prompt": _user(text)} for text in itertools.islice(asked, NUM_PROMPTS)
    ]
    return {"demonstrations": demonstrations, "rankings": rankings, "prompts": prompts}


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _distinct_answers(prompt: str, rng: Random) -> list[str]:
    thing, problem = read_prompt(prompt)
    found: dict[str, None] = {}
    while len(found) < NUM_COMPLETIONS:
        found.setdefault(answer(thing, problem, rng, DRAFTS))
    return list(found)


def files(seed: int) -> dict[str, bytes]:
    """Every file's bytes, by file name."""
    return {
        f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()
        for name, rows in records(seed).items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` compare them; the exit status."""
    parser = argparse.ArgumentParser(description="Write the data of the tiny recipe.")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="another seed writes other data (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=DATA, help="folder to write to, or to check (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether the files are what would be written"
    )
    arguments = parser.parse_args(argv)
    wrong = 0
    for name, content in files(arguments.seed).items():
        path = arguments.out / name
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"wrote {path} ({len(content):,} bytes)")
        elif not path.is_file() or path.read_bytes() != content:
            print(f"{path} is not what the generator writes", file=sys.stderr)
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
