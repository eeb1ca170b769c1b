"""The prompt of a row is the same to the token in every stage, whatever the shape of the row."""

import json
from pathlib import Path
from typing import Any

import pytest

from labeling.config import SamplesSettings
from labeling.generation.sample import _fitting
from ppo.config import PPOSettings
from ppo.data import load_prompts
from reward.config import RewardSettings
from reward.data import load_rankings
from rlhf.data.counts import RecordCounts
from rlhf.data.prompt_form import FORM, form_of, warn_of_other_form
from rlhf.data.records import Message, Prompt
from rlhf.data.sources import read_demonstrations, read_prompts, split_by_prompt
from rlhf.model.backbone import Backbone
from rlhf.model.chat import encode_prompt, prompt_text
from rlhf.settings.chat_templates import ZEPHYR
from rlhf.settings.groups import LengthSettings, SourceSettings
from sft.data import Encoder
from tests.support.small import small_backbone

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def user(n: int) -> dict[str, str]:
    return said("user", f"w{n} w1")


SYSTEM, GOOD, BAD = said("system", "w50"), said("assistant", "w2 w3"), said("assistant", "w4")
PAIR = {"chosen": "w2 w3", "rejected": "w4"}

# What a row of each shape is, from a number; all of them say the same prompt to a model that chats.
CHATS: dict[str, Any] = {
    "messages of prompt and sides": lambda n: {
        "prompt": [user(n)],
        "chosen": [GOOD],
        "rejected": [BAD],
    },
    "text beside answers alone": lambda n: {"prompt": f"w{n} w1", "chosen": [GOOD], "rejected": [BAD]},
    "text beside sides that repeat it": lambda n: {
        "prompt": f"w{n} w1",
        "chosen": [user(n), GOOD],
        "rejected": [user(n), BAD],
    },
    "UltraFeedback": lambda n: {
        "prompt": f"w{n} w1",
        "prompt_id": "x",
        "chosen": [user(n), GOOD],
        "rejected": [user(n), BAD],
        "messages": [user(n), GOOD],
    },
    "sides alone": lambda n: {"chosen": [user(n), GOOD], "rejected": [user(n), BAD]},
    "message prompt, text sides": lambda n: {"prompt": [user(n)], **PAIR},
    "parts": lambda n: {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": f"w{n} w1"}]}],
        **PAIR,
    },
    "text in a run of conversations": lambda n: {"prompt": f"w{n} w1", **PAIR},
}
SHAPES: dict[str, Any] = {
    **CHATS,
    "text": lambda n: {"prompt": f"w{n} w1", **PAIR},
    "transcripts": lambda n: {
        side: f"{HUMAN} w{n}{ASSISTANT} w1{HUMAN} w5{ASSISTANT} {said}" for side, said in PAIR.items()
    },
    "transcript prompt": lambda n: {"prompt": f"{HUMAN} w{n}{ASSISTANT}", **PAIR},
    "system message only in the sides": lambda n: {
        "prompt": f"w{n} w1",
        "chosen": [SYSTEM, user(n), GOOD],
        "rejected": [SYSTEM, user(n), BAD],
    },
    "several turns": lambda n: {
        "chosen": [SYSTEM, user(n), BAD, user(n + 1), GOOD],
        "rejected": [SYSTEM, user(n), BAD, user(n + 1), BAD],
    },
}


def backbone(*, chats: bool = True) -> Backbone:
    made = small_backbone()
    made.tokenizer.chat_template = ZEPHYR if chats else None
    return made


def rows_of(shape: str, folder: Path) -> str:
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(SHAPES[shape](n)) + "\n" for n in range(10, 30)))
    return str(path)


def note_form(run: Path, form: str, stage: str = "sft") -> None:
    """The manifest of a stage that notes `form`."""
    manifest = {
        **{"stage": stage, "config_hash": "", "seed": 0, "git_revision": None, "git_dirty": None},
        **{"packages": {}, "device": "cpu", "inputs": {}, "outputs": {}, "output_bytes": {}},
        **{"artifact_sha256": "", "metrics": {}, "accounts": {FORM: form}, "wandb": None},
    }
    (run / stage).mkdir(exist_ok=True)
    (run / stage / "manifest.json").write_text(json.dumps(manifest))


def prompts_of_stages(
    model: Backbone, run: Path, sft_source: dict[str, Any], source: dict[str, Any], *, transcript: bool
) -> dict[str, tuple[list[list[int]], list[list[int]]]]:
    """Training and held-out prompts, as ids, of each stage."""
    columns = {"columns": {"transcript": "chosen"}} if transcript else {}
    sources = [SourceSettings.model_validate({**sft_source, **columns})]
    demonstrations, _ = read_demonstrations(sources, seed=3, run_folder=run, form="auto")
    note_form(run, form_of(demonstrations))
    length = LengthSettings()
    encoder = Encoder(
        model.tokenizer, model.eos_ids, length=length, context=model.max_length, counts=RecordCounts()
    )
    sides = encoder.split(demonstrations, fraction=0.3, seed=3)
    found = {"sft": tuple([e.prompt_ids for e in side] for side in (sides.train, sides.held_out))}
    reward = RewardSettings.model_validate({"rankings": [source], "held_out_fraction": 0.3})
    groups = load_rankings(model, reward, seed=3, run_folder=run)
    found["reward"] = tuple([g.prompt_ids for g in side] for side in (groups.train, groups.held_out))
    values = {"prompts": [{**source, **columns}], "held_out_fraction": 0.3}
    prompts = load_prompts(model, PPOSettings.model_validate(values), seed=3, run_folder=run)
    found["ppo"] = (prompts.train.ids, prompts.held_out.ids)
    samples = SamplesSettings.model_validate({"prompts": [{**source, **columns}]})
    read, _ = read_prompts(samples.prompts, seed=3, run_folder=run, form=form_of(demonstrations))
    drawn = [
        [ids for _, ids in _fitting(model, side, samples, RecordCounts(), step="labeling.samples")]
        for side in split_by_prompt(read, fraction=0.3, seed=3, form=form_of(demonstrations))
    ]
    found["labeling"] = (drawn[0], drawn[1])
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"text in a run of conversations"}))
def test_all_stages_have_the_same_prompts_of_a_file_and_hold_out_the_same(tmp_path: Path, shape: str) -> None:
    path = {"path": rows_of(shape, tmp_path)}
    found = prompts_of_stages(backbone(), tmp_path, path, path, transcript=shape == "transcripts")
    assert len(found["sft"][1]) > 0
    for stage in ("reward", "ppo", "labeling"):
        assert found[stage] == found["sft"], stage


@pytest.mark.parametrize("shape", ["text", "transcripts", "transcript prompt"])
def test_texts_need_no_chat_template(tmp_path: Path, shape: str) -> None:
    path = {"path": rows_of(shape, tmp_path)}
    model = backbone(chats=False)
    found = prompts_of_stages(model, tmp_path, path, path, transcript=shape == "transcripts")
    assert found["reward"] == found["ppo"] == found["labeling"] == found["sft"]


@pytest.mark.parametrize("shape", sorted(CHATS))
def test_one_prompt_in_different_shapes_is_one_prompt_in_all_stages(tmp_path: Path, shape: str) -> None:
    demonstrations = {"path": rows_of("sides alone", tmp_path)}
    source = {"path": rows_of(shape, tmp_path)}
    model = backbone()
    found = prompts_of_stages(model, tmp_path, demonstrations, source, transcript=False)
    assert found["reward"] == found["ppo"] == found["labeling"] == found["sft"]
    expected = [encode_prompt(model.tokenizer, "w1")]  # a bare text, which none of them may be
    assert all(ids[: len(expected[0])] != expected[0] for side in found["ppo"] for ids in side)


def test_a_text_and_the_same_text_said_by_a_user_are_on_the_same_side_of_a_split(tmp_path: Path) -> None:
    rows = [SHAPES[shape](n) for n in range(10, 40) for shape in ("text", "messages of prompt and sides")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceSettings(path=str(path))
    records, _ = read_prompts([source], seed=0, run_folder=tmp_path)
    for side in split_by_prompt(records, fraction=0.4, seed=0):
        texts = {each.prompt for each in side if isinstance(each.prompt, str)}
        assert texts == {each.prompt[0].content for each in side if not isinstance(each.prompt, str)}
        assert texts


def test_in_a_run_of_texts_a_message_is_held_out_where_its_text_is(tmp_path: Path) -> None:
    texts, _ = read_prompts([SourceSettings(path=rows_of("text", tmp_path))], seed=0, run_folder=tmp_path)
    chats, _ = read_prompts(
        [SourceSettings(path=rows_of("sides alone", tmp_path))], seed=0, run_folder=tmp_path
    )
    held_out = split_by_prompt(texts, fraction=0.4, seed=0)[1]
    as_messages = split_by_prompt(chats, fraction=0.4, seed=0, form="text")[1]
    assert [each.prompt for each in held_out] == [prompt_text(each.prompt) for each in as_messages]


def test_a_source_may_keep_its_texts_bare_and_what_becomes_messages_is_counted(tmp_path: Path) -> None:
    source = SourceSettings(path=rows_of("text", tmp_path))
    chats = SourceSettings(path=rows_of("sides alone", tmp_path))
    records, counts = read_demonstrations([source, chats], seed=0, run_folder=tmp_path, form="auto")
    assert all(not isinstance(record.prompt, str) for record in records)
    assert counts.noted() == {"text as one user message": 20}
    bare = source.model_copy(update={"text_prompts": "text"})
    records, counts = read_demonstrations([bare, chats], seed=0, run_folder=tmp_path, form="auto")
    assert sum(isinstance(record.prompt, str) for record in records) == 20
    assert counts.noted() == {}


def test_without_demonstrations_text_beside_the_rankings_conversations_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [Prompt(prompt=f"w{n}") for n in range(3)]
    chats = [Prompt(prompt=(Message("user", f"w{n}"),)) for n in range(3)]
    for noted, records, is_odd in (
        (None, texts, False),
        (None, chats, False),
        (None, [*texts, *chats], True),
        ("messages", texts, True),
        ("messages", chats, False),
        ("text", chats, True),
        ("text", texts, False),
    ):
        if noted:
            note_form(tmp_path, noted, stage="reward")
        warn_of_other_form("ppo", records, tmp_path)
        assert ("warning: ppo: " in capsys.readouterr().err) == is_odd
