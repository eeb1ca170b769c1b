"""The peer in PPO: TRL 1.12.0's PPOTrainer, the last one; runs only with that version on PYTHONPATH."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  loads with the first model otherwise
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.memory import PeakMemory
from benchmarks.trl.jobs import Job, Result, prompt_ids_path
from benchmarks.trl.laps import Laps
from benchmarks.trl.peer_install import PEER_VERSION
from benchmarks.trl.peer_laps import TakeLaps, num_trainable
from benchmarks.trl.peer_models import reward_model, value_model
from benchmarks.trl.peer_settings import linear_names, peer_arguments, peer_lora
from benchmarks.trl.racer import num_base_parameters, race, read_recipe, result_of
from benchmarks.trl.snapshots import Snapshots
from ppo.config import PPOSettings
from rlhf.model.loading import quiet_transformers


class Lengths:
    """Notes the length of every response that the trainer samples."""

    def __init__(self, eos_id: int) -> None:
        self.tokens: list[int] = []
        self.num_ended = 0
        self._eos_id = eos_id

    def listen(self) -> None:
        generation = ppo_trainer.batch_generation

        def noted(model: Any, queries: torch.Tensor, *args: Any) -> Any:
            texts, logits = generation(model, queries, *args)
            is_eos = texts[:, queries.shape[1] :] == self._eos_id
            lengths = torch.where(is_eos.any(1), is_eos.int().argmax(1) + 1, is_eos.shape[1])
            self.tokens += lengths.tolist()
            self.num_ended += int(is_eos.any(1).sum())
            return texts, logits

        ppo_trainer.batch_generation = noted


def run(job: Job) -> Result:
    """Train for the recipe's number of iterations."""
    assert metadata.version("trl") == PEER_VERSION
    quiet_transformers()
    memory = PeakMemory(job.device)
    set_seed(job.seed)
    settings = cast(PPOSettings, read_recipe(job).section("ppo"))
    run_folder = Path(job.run_folder)
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "sft" / "model", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(run_folder / "sft" / "model", dtype=torch.float32)
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    prompts = json.loads(prompt_ids_path(run_folder, job.seed).read_text(encoding="utf-8"))
    laps = Laps(job.device)
    lengths = Lengths(tokenizer.eos_token_id)
    lengths.listen()
    snapshots = Snapshots(job, laps, settings)
    arguments = peer_arguments(settings, seed=job.seed, device=job.device, stops_at_eos=job.stops_at_eos)
    trainer = PPOTrainer(
        args=PPOConfig(output_dir=job.output, **arguments),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model(run_folder),
        value_model=value_model(run_folder),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            **peer_lora(
                settings.lora,
                linear_names(policy, policy.get_output_embeddings()),
                job.layers,
                policy.config.num_hidden_layers,
            ),
        ),
        callbacks=[TakeLaps(laps, snapshots)],
    )
    num_base = num_base_parameters(trainer.policy_model)
    trainer.train()
    laps.close()
    return result_of(
        job,
        laps,
        memory.take(),
        trainer.accelerator.device,
        num_base_parameters=num_base,
        trainable_parameters={
            "policy": num_trainable(trainer.policy_model),
            "value": num_trainable(trainer.value_model),
        },
        response_tokens=lengths.tokens,
        num_ended=lengths.num_ended,
        snapshots=snapshots.taken,
    )


if __name__ == "__main__":
    sys.exit(race(run, sys.argv[1:]))
