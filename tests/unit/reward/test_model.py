"""A published reward model: what comes back, and on which base it may stand."""

import json
from pathlib import Path

import pytest
import torch

from reward.model import (
    Normalization,
    RewardCard,
    base_identity,
    folder_identity,
    load_reward,
    measure_normalization,
    score_sequences,
)
from reward.publish import write_model
from rlhf.errors import UserError
from rlhf.model.adapters import init_head
from rlhf.model.backbone import Backbone
from rlhf.model.batching import TokenBatch
from rlhf.runs.files import sha256_file
from rlhf.runs.manifest import Manifest
from rlhf.settings.groups import Precision, SamplingSettings
from tests.support.small import perturb, small_backbone, write_small_model
from tests.unit.reward.groups import random_groups

SEQUENCES = [ids for group in random_groups(6) for ids in group.sequences]


def card(**values: object) -> RewardCard:
    defaults: dict[str, object] = {
        "base_sha256": "a" * 64,
        "precision": "fp32",
        "mean": 0.5,
        "std": 2.0,
        "num_reference_samples": 8,
        "eos_ids": [2],
        "max_tokens": 128,
    }
    return RewardCard.model_validate(defaults | values)


def published(folder: Path, *, precision: Precision = "fp32", **values: object) -> tuple[Backbone, Path]:
    """A backbone with a reward of random weights, and the folder it was published to."""
    backbone = small_backbone("reward", precision=precision)
    init_head(backbone.add_head("reward", bias=False), seed=3)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(backbone, card(precision=precision, **values), folder)
    return backbone, folder


def test_what_is_loaded_scores_as_what_was_published(tmp_path: Path) -> None:
    backbone, folder = published(tmp_path)
    model = load_reward(small_backbone(), folder, expected_base_sha256="a" * 64)
    batch = TokenBatch.of(SEQUENCES, 0, "cpu")
    with torch.no_grad():
        raw = model.raw(batch)
        torch.testing.assert_close(model.normalized(raw), (raw - 0.5) / 2.0)
    torch.testing.assert_close(raw, score_sequences(backbone, SEQUENCES, max_tokens=10**6))
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_the_score_is_that_of_the_last_real_token(tmp_path: Path) -> None:
    backbone, folder = published(tmp_path)
    model = load_reward(small_backbone(), folder, expected_base_sha256="a" * 64)
    with torch.no_grad():
        alone = torch.cat([model.raw(TokenBatch(torch.tensor([ids]))) for ids in SEQUENCES])
        together = model.raw(TokenBatch.of(SEQUENCES, 17, "cpu"))
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        last = torch.tensor([s[-1:] for s in SEQUENCES])
    with backbone.role("reward"), torch.no_grad():
        hidden = backbone.hidden(torch.tensor([SEQUENCES[0]]))
        torch.testing.assert_close(alone[:1], backbone.scalar("reward", hidden[:, -1]))
    assert last.unique().tolist() == [2]  # and that token is the EOS


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_scores_come_back_in_the_order_given_whatever_the_batching(
    tmp_path: Path, precision: Precision
) -> None:
    if precision != "fp32":
        pytest.importorskip("bitsandbytes")
    backbone, _ = published(tmp_path, precision=precision)
    whole = score_sequences(backbone, SEQUENCES, max_tokens=10**6)
    for tokens in (1, 50):
        torch.testing.assert_close(
            score_sequences(backbone, SEQUENCES, max_tokens=tokens), whole, atol=1e-5, rtol=1e-4
        )
    assert score_sequences(backbone, [], max_tokens=8).shape == (0,)


def test_a_reward_model_of_another_base_is_refused_with_a_way_out(tmp_path: Path) -> None:
    _, folder = published(tmp_path)
    with pytest.raises(UserError, match=r"trained on another base[\s\S]*Train the reward stage again"):
        load_reward(small_backbone(), folder, expected_base_sha256="b" * 64)


def test_a_folder_without_a_card_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.json is missing"):
        load_reward(small_backbone(), tmp_path, expected_base_sha256="a" * 64)


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 2}', '{"schema_version": 1}'])
def test_a_damaged_card_is_named(tmp_path: Path, damage: str) -> None:
    _, folder = published(tmp_path)
    (folder / "reward.json").write_text(damage)
    with pytest.raises(UserError, match=r"reward\.json"):
        load_reward(small_backbone(), folder, expected_base_sha256="a" * 64)


OLD_CARD = """\
{
  "schema_version": 1,
  "base_sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "precision": "fp32",
  "offset": 0.30000000000000004,
  "spread": 0.3333333333333333,
  "num_reference_samples": 8,
  "eos_ids": [
    2
  ],
  "max_tokens": 128
}
"""
"""A `reward.json` as models published before `mean` and `std` had these names have it."""


def test_a_card_of_an_older_release_opens_and_is_written_as_it_was(tmp_path: Path) -> None:
    _, folder = published(tmp_path)
    (folder / "reward.json").write_text(OLD_CARD)
    model = load_reward(small_backbone(), folder, expected_base_sha256="a" * 64)
    assert (model.mean, model.std) == (0.1 + 0.2, 1 / 3)
    assert model.card.to_json() == OLD_CARD


def test_the_card_comes_back_bitwise(tmp_path: Path) -> None:
    mean, std = 0.1 + 0.2, 1 / 3
    _, folder = published(tmp_path, mean=mean, std=std)
    assert RewardCard.of(folder) == card(mean=mean, std=std)
    assert (RewardCard.of(folder).mean, RewardCard.of(folder).std) == (mean, std)


def sft_manifest(folder: Path, stage: str = "sft") -> Manifest:
    outputs = {f"{stage}/model/{path.name}": sha256_file(path) for path in folder.iterdir()}
    blank = dict.fromkeys(("git_revision", "git_dirty", "wandb"))
    empty: dict[str, object] = {
        "packages": {},
        "inputs": {},
        "metrics": {},
        "accounts": {},
        "output_bytes": {},
    }
    values = {"stage": stage, "config_hash": "", "seed": 0, "device": "cpu", "artifact_sha256": ""}
    return Manifest.model_validate({**values, **blank, **empty, "outputs": outputs})


def test_the_identity_of_a_base_is_the_same_from_its_manifest_and_from_its_files(tmp_path: Path) -> None:
    write_small_model(tmp_path)
    assert base_identity(sft_manifest(tmp_path)) == folder_identity(tmp_path)


def test_the_identity_of_a_base_is_its_weights_and_vocabulary(tmp_path: Path) -> None:
    write_small_model(tmp_path / "a")
    write_small_model(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert folder_identity(tmp_path / "a") == folder_identity(tmp_path / "b")
    write_small_model(tmp_path / "b", seed=1)
    assert folder_identity(tmp_path / "a") != folder_identity(tmp_path / "b")


def test_noise_in_the_adapter_moves_the_score(tmp_path: Path) -> None:
    backbone, _ = published(tmp_path)
    before = score_sequences(backbone, SEQUENCES, max_tokens=1000)
    perturb(backbone, "reward", seed=9)
    assert not torch.allclose(before, score_sequences(backbone, SEQUENCES, max_tokens=1000))


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-7), ("bf16", 1e-3), ("nf4", 1e-3)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_scores_that_differ_by_rounding_alone_are_not_divided_by_it(
    precision: Precision, noise: float, size: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores_S = size * (1 + noise * torch.randn(50, generator=generator, dtype=torch.float64))
    assert Normalization(scores_S, 50, precision).std == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_scores_that_differ_more_have_their_own_std(precision: Precision, mean: float) -> None:
    scores_S = mean + 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert Normalization(scores_S, 50, precision).std == float(scores_S.std(correction=0))


def test_an_older_card_with_a_std_of_rounding_noise_is_loaded_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = published(tmp_path, std=2e-8)
    assert load_reward(small_backbone(), folder, expected_base_sha256="a" * 64).std == 1.0
    assert "2.0e-08 around 0.5 is rounding noise" in capsys.readouterr().err


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_samples_without_a_finite_score_are_left_out_of_mean_and_std(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: float
) -> None:
    scores = torch.tensor([1.0, number, 3.0, 5.0])
    monkeypatch.setattr("reward.model.score_sequences", lambda *args, **kwargs: scores)
    backbone = small_backbone("reward")
    sampling = SamplingSettings(max_response_tokens=3)
    measured = measure_normalization(backbone, [[5, 6]], sampling, num_samples=4, max_tokens=64, seed=1)
    assert measured.scores_S.tolist() == [1.0, 3.0, 5.0]
    assert "1 of 4 samples of the SFT policy have no finite score" in capsys.readouterr().err
    scores[:] = number
    with pytest.raises(UserError, match="none of 4 samples of the SFT policy has a finite score"):
        measure_normalization(backbone, [[5, 6]], sampling, num_samples=4, max_tokens=64, seed=1)
