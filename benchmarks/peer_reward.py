"""The peer in reward training: RewardTrainer of the TRL that our environment has, on all implied pairs."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  loads with the first model otherwise
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, set_seed
from trl import RewardConfig, RewardTrainer

from benchmarks.fixtures import read_groups
from benchmarks.jobs import Job, Result
from benchmarks.laps import Laps
from benchmarks.memory import PeakMemory
from benchmarks.peer_settings import linear_names, peer_lora, reward_batching
from benchmarks.racer import race, read_recipe
from reward.config import RewardSettings
from reward.data import Group
from reward.evaluate import evaluate
from reward.model import pad_right
from rlhf.model.backbone import quiet_transformers
from rlhf.runs.manifest import package_versions


class Marks(TrainerCallback):
    """Takes laps."""

    def __init__(self, laps: Laps) -> None:
        self._laps = laps

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._laps.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._laps.lap()


def run(job: Job) -> Result:
    """Train on all pairs that the groups imply, and measure on the held-out groups."""
    quiet_transformers()
    memory = PeakMemory(job.device)
    set_seed(job.seed)
    settings = cast(RewardSettings, read_recipe(job).section("reward"))
    train, held_out = read_groups(Path(job.run_folder))
    base = Path(job.run_folder) / "sft" / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    device_batch, accumulation = reward_batching(
        pairs_per_step=settings.batch_size * len(train[0].pairs),
        longest=max(group.max_tokens for group in train),
        budget_tokens=settings.micro_batch_tokens,
    )
    laps = Laps(job.device)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=job.output,
            seed=job.seed,
            use_cpu=job.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_length=None,
            per_device_train_batch_size=device_batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=settings.num_epochs,
            max_steps=job.max_laps or -1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
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
        callbacks=[Marks(laps)],
    )
    trainer.train()
    laps.close()
    trained = memory.take()
    peer: Any = trainer.model
    scores = score(peer, held_out, tokenizer.pad_token_id)
    metrics = evaluate(held_out, scores, tie_margin=None, gold=None, seed=0)
    return Result(
        racer=job.racer,
        laps=laps.laps,
        num_warmup_laps=job.num_warmup_laps,
        memory=trained,
        threads=torch.get_num_threads(),
        device=str(trainer.accelerator.device),
        num_base_parameters=sum(
            p.numel() for n, p in peer.named_parameters() if ".lora_" not in n and "score" not in n
        ),
        trainable_parameters={"reward": sum(p.numel() for p in peer.parameters() if p.requires_grad)},
        versions=package_versions(),
        metrics=metrics,
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
        ids_NL, mask_NL = pad_right(group.sequences, pad_id, model.device)
        scores.append(model(input_ids=ids_NL, attention_mask=mask_NL).logits.squeeze(-1).tolist())
    return scores


if __name__ == "__main__":
    sys.exit(race(run, sys.argv[1:]))
