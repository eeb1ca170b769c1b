"""Groups of settings: frozen, typed, checked at construction; a field's docstring is its help text."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlhf.settings.wording import NAME_PATTERN

STAGES = ("sft", "reward", "ppo", "labeling")
Precision = Literal["fp32", "bf16", "int8", "nf4"]


class Settings(BaseModel):
    """A frozen group of settings; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def setting(
    default: Any = ..., *, semantic: bool = True, names: str | None = None, **constraints: Any
) -> Any:
    """A field with constraints; `semantic=False` marks one that cannot change what a stage produces.

    So are paths: what they lead to is hashed, and counts as one of the stage's inputs. `names` says what a
    text names outside the recipe (`scorer`, `model`, `file`), to be looked for before any stage starts.
    """
    return Field(default, json_schema_extra={"semantic": semantic, "names": names}, **constraints)


class RunSettings(Settings):
    """Where a run is stored and what makes it repeatable."""

    name: str = setting("run", semantic=False, pattern=NAME_PATTERN)
    """The run's name: its folder is `<folder>/<name>`."""
    folder: Path = setting(Path("runs"), semantic=False)
    """Folder that holds all runs."""
    seed: int = setting(0, ge=0, lt=2**32)
    """Every random choice of every stage is a function of this number."""
    device: str = setting("auto", semantic=False)
    """`auto` (CUDA, else CPU) or a torch device such as `cpu`, `cuda:1`."""
    threads: int = setting(0, semantic=False, ge=0, le=1024)
    """CPU threads that torch uses; 0 leaves torch's own choice."""
    gather: Literal["auto", "whole", "layers"] = setting("auto", semantic=False)
    """ZeRO-3, outside training: gather the weights once a phase, or layer by layer in every forward pass.

    `auto`: once, if they take at most half of the memory that is free on every rank.
    """


class TrackingSettings(Settings):
    """Where metrics go in addition to `metrics.jsonl`."""

    wandb: Literal["auto", "online", "offline", "off"] = setting("auto", semantic=False)
    """`auto`: online when logged in to W&B, otherwise offline."""
    project: str = setting("triptych", semantic=False)
    """The W&B project."""
    log_every_steps: int = setting(10, semantic=False, ge=1)
    """Optimizer steps between two lines of `metrics.jsonl` in the SFT and reward stages."""


class ScratchSettings(Settings):
    """A small Llama-shaped model made from nothing: for tests, demonstrations and laptops."""

    hidden_size: int = setting(128, ge=8)
    """Width of the residual stream."""
    num_layers: int = setting(4, ge=1)
    """Transformer blocks."""
    num_heads: int = setting(4, ge=1)
    """Attention heads; must divide `hidden_size`."""
    intermediate_size: int = setting(384, ge=8)
    """Width of the feed-forward layer."""
    vocab_size: int = setting(1024, ge=300)
    """Size of the byte-level BPE vocabulary that is trained on the run's own texts."""
    max_length: int = setting(256, ge=16)
    """Context in tokens."""
    tie_embeddings: bool = True
    """Whether the output head is the input embedding."""
    pad_token: Literal["own", "eos", "unk"] = "own"
    """Which token pads: one of its own, the end of sequence, or `<|unk|>`. Never changes a result."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ScratchSettings":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide hidden_size ({self.hidden_size})")
        return self


class ModelSettings(Settings):
    """The model that the pipeline starts from."""

    path: str | None = setting(None, semantic=False)
    """A local folder or a hub id of a causal language model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    scratch: ScratchSettings | None = None
    """Make a model from nothing instead."""
    precision: Precision = "fp32"
    """How reward, PPO, samples and chat hold the frozen base; `int8` and `nf4` (4 bits) need bitsandbytes.

    Adapters and heads are always trained in fp32. The SFT stage trains and publishes unquantized weights.
    """
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    chat_template: str | None = None
    """Chat template that overrides the tokenizer's own: a name (`chatml`), a file, or Jinja text.

    A file is sought from the working directory and from the recipe's folder: a template, a
    `tokenizer_config.json`, or a model's folder.
    """
    date: str | None = setting(None, pattern=r"^\d{4}-\d\d-\d\d$")
    """The day that a chat template writes into prompts, if it writes one; unset: that of the run's start."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Leave off unless you have read that code."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSettings":
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give either `path` (a model) or `scratch` (sizes of a new one)")
        return self

    @model_validator(mode="after")
    def _a_day(self) -> "ModelSettings":
        if self.date is not None:
            date.fromisoformat(self.date)
        return self


class LoraSettings(Settings):
    """A low-rank adapter (Hu et al. 2021, 2106.09685)."""

    rank: int = setting(16, ge=1)
    """Rank r of the update B·A."""
    alpha: float = setting(32.0, gt=0)
    """The update is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or `all-linear` for every linear layer except the head."""
    top_layers: int | None = setting(None, ge=1)
    """Only the topmost so many decoder layers get an adapter; unset means all. What is below them is then
    the same for every role, runs once for a sequence, and is never trained through: set it alike in
    `reward.lora` and `ppo.lora`."""


class LengthSettings(Settings):
    """What happens to an example that does not fit."""

    max_tokens: int | None = setting(None, ge=2)
    """Prompt and completion together; unset means the model's context."""
    over_length: Literal["error", "drop", "truncate_left"] = "error"
    """`truncate_left` removes a conversation's oldest turns, or the beginning of a plain prompt.

    It never takes a token of the completion, a system message, or part of a turn.
    """


class SamplingSettings(Settings):
    """How completions are drawn: plain ancestral sampling, so log-probabilities are those of the draw."""

    max_response_tokens: int = setting(64, ge=1)
    """Longest response, its EOS included."""
    temperature: float = setting(1.0, gt=0)
    """Logits are divided by this before the softmax."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """A response also ends where one of these strings appears; judged is the text before it, and EOS."""
    batch_size: int = setting(64, semantic=False, ge=1)
    """Sequences decoded together."""


class SourceSettings(Settings):
    """One source of records: a local file or a hub data set."""

    path: str = setting(semantic=False)
    """A .jsonl, .json, .csv or .parquet file (`{run}` is the run's folder), or a hub id `owner/name`."""
    name: str | None = None
    """Configuration (subset) of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    columns: dict[str, str] = {}
    """Our field → the source's column: `{prompt: question, completion: answer}`; unset detects the schema."""
    templates: dict[str, str] = {}
    """Our field → text with `{column}` place-holders: `{prompt: "Question: {question}\\nAnswer:"}`."""
    choices: dict[str, Literal["first", "second", "tie", "neither"]] | None = None
    """What the values of the field `better` mean, in a pair of answers: `{"0": first, "1": second}`."""
    transcripts: Literal["text", "messages"] = "text"
    """Whether a "\\n\\nHuman: … \\n\\nAssistant: …" transcript stays plain text or becomes messages."""
    text_prompts: Literal["text", "messages"] | None = None
    """Whether a prompt that is text stays bare, or is one message of the user (a transcript: its messages).

    Unset: messages, where the SFT stage's demonstrations have any conversation.
    """
    ignore: list[str] | None = None
    """Columns, and keys of messages, to go without: `[name]`.

    Else a row is refused where one of them would be part of the prompt, or sounds as if it said which answer
    is better or good, and is not understood. Any other column that nothing reads is named with the record
    counts.
    """
    weight: float | None = setting(None, gt=0)
    """Share of the mixture, relative to the other sources' weights; unset everywhere means all records."""
    limit: int | None = setting(None, ge=1)
    """Use only the first records of this source."""
