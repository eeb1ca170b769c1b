"""The peer in reward training: RewardTrainer of the TRL that our environment has, on all implied pairs."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  loads with the first model otherwise
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from benchmarks.memory import PeakMemory
from benchmarks.trl.fixtures import read_groups
from benchmarks.trl.jobs import Job, Result
from benchmarks.trl.laps import Laps
from benchmarks.trl.peer_laps import TakeLaps, num_trainable
from benchmarks.trl.peer_settings import linear_names, peer_lora, peer_reward_arguments
from benchmarks.trl.racer import num_base_parameters, race, read_recipe, result_of
from reward.config import RewardSettings
from reward.data import Group
from reward.evaluate import evaluate
from rlhf.model.batching import pad
from rlhf.model.loading import quiet_transformers


def run(job: Job) -> Result:
    """Train on all pairs that the groups imply, and evaluate on the held-out groups."""
    quiet_transformers()
    memory = PeakMemory(job.device)
    set_seed(job.seed)
    settings = cast(RewardSettings, read_recipe(job).section("reward"))
    train, held_out = read_groups(Path(job.run_folder))
    base = Path(job.run_folder) / "sft" / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    arguments = peer_reward_arguments(
        settings,
        pairs_per_step=settings.batch_size * len(train[0].pairs),
        longest=max(group.max_tokens for group in train),
    )
    laps = Laps(job.device)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=job.output,
            seed=job.seed,
            use_cpu=job.device == "cpu",
            max_steps=job.max_laps or -1,
            **arguments,
        ),
        train_dataset=Dataset.from_list(list(implied_pairs(train))),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            modules_to_save=["score"],
            **peer_lora(
                settings.lora, linear_names(model, model.score), job.layers, model.config.num_hidden_layers
            ),
        ),
        callbacks=[TakeLaps(laps)],
    )
    trainer.train()
    laps.close()
    trained = memory.take()
    peer: Any = trainer.model
    scores = score(peer, held_out, tokenizer.pad_token_id)
    metrics = evaluate(held_out, scores, tie_margin=None, gold=None, seed=0)
    return result_of(
        job,
        laps,
        trained,
        trainer.accelerator.device,
        num_base_parameters=num_base_parameters(peer),
        trainable_parameters={"reward": num_trainable(peer)},
        figures=metrics,
    )


def implied_pairs(groups: Sequence[Group]) -> Iterator[dict[str, list[int]]]:
    """Every pair of every group, the better sequence first."""
    for group in groups:
        for better, worse, _, _ in group.pairs:
            yield {"chosen_ids": group.sequences[better], "rejected_ids": group.sequences[worse]}


@torch.no_grad()
def score(model: Any, groups: Sequence[Group], pad_id: int) -> list[list[float]]:
    """The trained model's score of every completion of every group."""
    model.eval()
    scores: list[list[float]] = []
    for group in groups:
        ids_NL, mask_NL = pad(group.sequences, pad_id, model.device)
        scores.append(model(input_ids=ids_NL, attention_mask=mask_NL).logits.squeeze(-1).tolist())
    return scores


if __name__ == "__main__":
    sys.exit(race(run, sys.argv[1:]))
