"""Write `data/prompts.jsonl`: openings of stories for small children, 2,000 of them, all different.

An opening says who the story is about and what happens first, in two sentences or in one, and ends with a
space, where the story goes on. What happens is glad, plain or sad in fixed shares, so that continuations
differ in mood and a preference between moods has something to prefer. The file is a
function of the numbers and words below alone: `python configs/stories/generate.py` writes the same bytes
anywhere.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path

NUM_PROMPTS = 2000
SEED = 2025
MOODS = {"glad": 0.35, "plain": 0.35, "sad": 0.30}
ONE_SENTENCE = 0.3
"""Share of the openings that introduce the character in passing."""


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words("Lily Mia Anna Sara Lucy Amy Sue Emma Mary Lisa Jane Daisy Molly Kate")
BOYS = _words("Tom Tim Ben Jack Sam Max Leo Billy Joe Bob Timmy Jim Fred Mark")
ANIMALS = _words(
    "dog cat bird bunny bear frog mouse duck fox pig turtle squirrel lion elephant monkey puppy kitten fish"
)
ANIMAL_NAMES = _words("Spot Bella Buddy Fluffy Coco Sunny Rex Lulu Teddy Bobo Milo Pepper")
TRAITS = _words("little small young shy clever brave curious funny kind sleepy")
HOMES = (
    "in a small house",
    "near a lake",
    "in a quiet town",
    "on a farm",
    "by the sea",
    "in the forest",
    "on a hill",
    "in a big tree",
)

WHO = (
    "Once upon a time, there was a {trait} {kind} named {name}.",
    "Once upon a time, a {kind} named {name} lived {home}.",
    "Once there was a {trait} {kind} named {name}.",
    "There was a {trait} {kind} named {name}.",
    "{name} was a {trait} {kind} who lived {home}.",
    "{name} was a {kind} who lived {home}.",
)

WHAT = {
    "glad": (
        "One day, {name} got a new {thing} from {their} grandma.",
        "{name} loved to play with {their} {thing} in the {place}.",
        "Today {name} was going to the {place} with {their} best friend.",
        "One sunny day, {name} found a shiny {thing} in the {place}.",
        "{name} wanted to make a {color} {thing} for {their} mom.",
        "It was {name}'s birthday, and there was a big cake.",
        "One day, {name} and {their} dad went to the {place} to have fun.",
        "{name} liked to share {their} {thing} with everyone.",
    ),
    "plain": (
        "One day, {name} saw a {color} {thing} in the {place}.",
        "{name} had a {color} {thing} and took it everywhere.",
        "Every day, {name} walked to the {place} with {their} mom.",
        "One day, {name} went to the {place} to look for a {thing}.",
        "{name} looked out and saw a {thing} in the {place}.",
        "In the {place}, there was a very big {color} {thing}.",
        "One day, an old man came to {name} with a {thing}.",
        "{name} put {their} {thing} under the bed and went to the {place}.",
    ),
    "sad": (
        "One day, {name} lost {their} {color} {thing} in the {place}.",
        "{name} was afraid to go to the {place} alone.",
        "One day, {name} fell down in the {place} and hurt {their} leg.",
        "It rained all day, and {name} could not go to the {place}.",
        "{name} dropped {their} {thing} and it broke.",
        "One day, a big {animal} took {name}'s {thing} away.",
        "{name} was sad because nobody wanted to play.",
        "One night, {name} heard a loud noise in the {place}.",
    ),
}

THINGS = _words(
    "ball box car doll hat boat kite book drum bell key leaf stone cup lamp bike flower rope toy ring spoon "
    "basket blanket apple shell"
)
INTRODUCES = re.compile(r"(?P<when>One [a-z ]+, )\{name\}")
"""What can be told of a character that was not named before."""

COLORS = _words("red blue green yellow white black brown pink orange purple")
PLACES = _words("park garden forest kitchen yard market field school woods barn river store street pond")


def opening(rng: random.Random) -> str:
    """One opening, drawn with `rng`; it ends with a space."""
    name, kind, their = _character(rng)
    mood = rng.choices(list(MOODS), weights=list(MOODS.values()))[0]
    words = {
        "name": name,
        "kind": kind,
        "their": their,
        "trait": rng.choice(TRAITS),
        "home": rng.choice(HOMES),
        "thing": rng.choice(THINGS),
        "color": rng.choice(COLORS),
        "place": rng.choice(PLACES),
        "animal": rng.choice(ANIMALS),
    }
    if rng.random() < ONE_SENTENCE:
        what = rng.choice([what for what in WHAT[mood] if INTRODUCES.match(what)])
        text = INTRODUCES.sub(r"\g<when>a {trait} {kind} named {name}", what)
    else:
        text = f"{rng.choice(WHO)} {rng.choice(WHAT[mood])}"
    return _right_articles(text.format(**words)) + " "


def prompts(num: int = NUM_PROMPTS, seed: int = SEED) -> list[str]:
    """`num` different openings, in the order in which `seed` draws them."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < num:
        found.setdefault(opening(rng))
    return list(found)


def _character(rng: random.Random) -> tuple[str, str, str]:
    """A name, what it belongs to, and the possessive pronoun."""
    sort = rng.choice(("girl", "boy", "animal"))
    if sort == "girl":
        return rng.choice(GIRLS), "girl", "her"
    if sort == "boy":
        return rng.choice(BOYS), "boy", "his"
    return rng.choice(ANIMAL_NAMES), rng.choice(ANIMALS), rng.choice(("her", "his"))


def _right_articles(text: str) -> str:
    """`a` becomes `an` before a vowel."""
    words = text.split(" ")
    for index, word in enumerate(words[:-1]):
        if word in ("a", "A") and words[index + 1][:1] in tuple("aeiou"):
            words[index] = word + "n"
    return " ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data" / "prompts.jsonl")
    output = parser.parse_args().output
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts()]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{len(lines)} prompts in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
