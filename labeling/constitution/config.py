"""Settings of the constitution: the group `labeling.constitution` of a recipe."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from rlhf.settings.groups import Precision, Settings, SourceSettings, setting


class LocalSettings(Settings):
    """A feedback model that runs here."""

    path: str = setting(semantic=False, names="model")
    """A local folder or a hub id of a causal language model; `{run}` is the run's folder."""
    adapter: str | None = setting(None, semantic=False, names="file")
    """A LoRA adapter on it, as a folder; unset: the model alone."""
    precision: Precision = "fp32"
    """How its weights are held."""
    chat_template: str | None = None
    """Jinja chat template; a model without any is asked in plain text."""
    batch_tokens: int = setting(16384, semantic=False, ge=1)
    """Padded tokens of questions that go through the model together."""
    batch_size: int = setting(64, semantic=False, ge=1)
    """Texts that are written together."""
    processes: int = setting(1, semantic=False, ge=1)
    """Copies of the model, a process each, that share the questions; on CUDA one for each device in turn."""


class EndpointSettings(Settings):
    """A feedback model behind an OpenAI-compatible endpoint."""

    url: str = setting(semantic=False, pattern=r"^https?://\S+$")
    """Its base, as in `http://127.0.0.1:8000/v1`."""
    model: str
    """The name by which the endpoint knows the model; answers are kept by this name, whatever the URL."""
    key_variable: str | None = setting(None, semantic=False)
    """Environment variable that holds the API key; unset: no key is sent."""
    extra: dict[str, str | int | float | bool] = {}
    """More fields for the body of every chat request, such as `{top_p: 0.9}`."""
    answers: Literal["auto", "logprobs", "votes", "typed"] = "auto"
    """How a choice is read: log-probabilities of the options, sampled votes, or `/systemone` decisions.

    `auto`: log-probabilities where the endpoint gives them, else votes.
    """
    text_logprobs: bool = True
    """Ask for the log-probabilities of texts, too, for the record; some endpoints refuse to."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = setting("max_tokens", semantic=False)
    """What the endpoint calls the longest answer: some hosted models know the second name only."""
    votes: int = setting(8, ge=1)
    """Answers that are sampled for a choice where it is read from votes."""
    vote_tokens: int = setting(8, ge=1)
    """Room for a vote: some models say a word or two before the letter."""
    concurrency: int = setting(16, semantic=False, ge=1)
    """Requests that wait for an answer at the same time."""
    timeout_seconds: float = setting(120.0, semantic=False, gt=0)
    """A request that takes longer has failed, and is tried again."""
    max_attempts: int = setting(10, semantic=False, ge=1)
    """Attempts at one request, the first included."""
    backoff_seconds: float = setting(0.5, semantic=False, gt=0)
    """Pause before the second attempt; every further one doubles it, up to a minute."""
    input_price: float = setting(0.0, semantic=False, ge=0)
    """Cost of a million input tokens."""
    output_price: float = setting(0.0, semantic=False, ge=0)
    """Cost of a million output tokens."""
    max_cost: float | None = setting(None, semantic=False, gt=0)
    """The stage stops before a request once it has spent so much."""
    max_tokens: int | None = setting(None, semantic=False, gt=0)
    """The stage stops before a request once it has used so many tokens, input and output together."""

    @model_validator(mode="after")
    def _url_has_no_secret(self) -> "EndpointSettings":
        if "@" in urlsplit(self.url).netloc:
            raise ValueError("`url` holds a password, and settings are written to files: use `key_variable`")
        return self

    @model_validator(mode="after")
    def _costs_something(self) -> "EndpointSettings":
        if self.max_cost is not None and not self.input_price and not self.output_price:
            raise ValueError("`max_cost` needs `input_price` or `output_price`: without any, nothing costs")
        return self


class FeedbackSettings(Settings):
    """The model that writes, criticizes, revises and compares: either `local` or `endpoint`."""

    local: LocalSettings | None = None
    """A model that runs here."""
    endpoint: EndpointSettings | None = None
    """A model behind an HTTP endpoint."""

    @model_validator(mode="after")
    def _one_kind(self) -> "FeedbackSettings":
        if (self.local is None) == (self.endpoint is None):
            raise ValueError("give either `local` (a model here) or `endpoint` (a URL)")
        return self


class TextSettings(Settings):
    """How a model's texts are drawn."""

    max_tokens: int = setting(256, ge=1)
    """Longest text."""
    temperature: float = setting(1.0, gt=0)
    """Of every text; choices between options are always read at temperature 1."""


class PromptSettings(SourceSettings):
    """Prompts, and the group under which the report counts them."""

    group: str | None = setting(None, semantic=False)
    """What the report calls these prompts: `red-team`, `ordinary`; unset: the source's path."""
    group_column: str | None = setting(None, semantic=False)
    """The column that names each prompt's group: `label`, say, of safe and unsafe prompts."""


class RevisionsSettings(Settings):
    """The supervised stage: response, critique, revision, and again (2212.08073, section 3)."""

    prompts: list[PromptSettings] = []
    """Prompts that the model answers first, and whose answers it then revises."""
    responses: list[SourceSettings] = []
    """Demonstrations whose completions are revised as they are."""
    rounds: int = setting(4, ge=1)
    """Critiques and revisions of each response, one after the other; a principle is drawn for each."""
    keep: Literal["all", "last"] = "all"
    """Whether every round's revision becomes a demonstration, or the last one's."""
    text: TextSettings = TextSettings()
    """How responses, critiques and revisions are drawn."""
    helpful: list[SourceSettings] = []
    """Demonstrations of being helpful, mixed in unchanged."""
    helpful_share: float = setting(0.5, gt=0, lt=1)
    """Their share of the result, if there are any; records are left out where the two do not fit it."""
    scorer: str | None = setting(None, semantic=False, names="scorer")
    """Measures every response and revision for the report: `file.py:function` or `module:function`."""
    refusals: list[str] | None = None
    """How texts begin that are nothing but a refusal: regular expressions, letter case apart.

    A critique or a revision that is one is left out and counted. Unset: common English ones
    (docs/constitution.md); empty: none, so that refusals become demonstrations.
    """

    @field_validator("refusals")
    @classmethod
    def _patterns(cls, patterns: list[str] | None) -> list[str] | None:
        for pattern in patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`{pattern}` is no regular expression ({error})") from None
        return patterns

    @model_validator(mode="after")
    def _something_to_revise(self) -> "RevisionsSettings":
        if not self.prompts and not self.responses:
            raise ValueError("give `prompts`, `responses`, or both")
        return self


class PreferencesSettings(Settings):
    """The preference stage: completions compared by principles (2212.08073, section 4)."""

    items: str | None = setting(None, semantic=False, names="file")
    """A file of prompts with completions; unset without `prompts`: `{run}/samples/samples.jsonl`."""
    limit: int | None = setting(None, ge=1)
    """Compare the completions of the first so many items only."""
    prompts: list[PromptSettings] = []
    """Prompts that the model answers itself, several times, instead of `items`."""
    completions_per_prompt: int = setting(2, ge=2, le=9)
    """Answers to each of `prompts`."""
    text: TextSettings = TextSettings()
    """How those answers, and trains of thought, are drawn."""
    max_pairs: int | None = setting(None, ge=1)
    """Pairs of an item's completions that are compared, drawn at random; unset: all."""
    principles_per_pair: int = setting(1, ge=1)
    """Principles drawn for each pair, whose opinions are averaged."""
    chain_of_thought: bool = False
    """Let the model reason before it answers."""
    clamp: float = setting(0.4, ge=0, lt=0.5)
    """After reasoning, a probability is moved between this and its complement; 0 leaves it as it is."""
    labels: Literal["soft", "hard"] = "soft"
    """Whether a ranking holds the probability of each pair, or ranks."""
    people: list[SourceSettings] = []
    """Rankings by people: compared with the constitution's, and mixed with them in `mixed.jsonl`."""
    people_share: float = setting(0.5, gt=0, lt=1)
    """Share of people's rankings in `mixed.jsonl`."""
    project: str | None = setting(None, semantic=False)
    """A labeling project (folder or URL) that receives the ranks, as one labeler's among the others."""
    scorer: str | None = setting(None, semantic=False, names="scorer")
    """What preferences are compared with in the report: `file.py:function` or `module:function`."""


class ConstitutionSettings(Settings):
    """Labels by a model that goes by written principles."""

    path: str = setting(semantic=False, names="file")
    """The constitution, a YAML file."""
    tags: list[str] = []
    """Use only principles with one of these tags; empty: all."""
    num_examples: int = setting(2, ge=0)
    """Worked examples, of those that the constitution brings along, before every question."""
    feedback: FeedbackSettings
    """The model that criticizes, revises and compares."""
    writer: FeedbackSettings | None = None
    """The model that answers prompts; unset: the feedback model."""
    accept_any_judge: bool = setting(False, semantic=False)
    """Publish labels also where the judge is found to say nothing: every preference one half, every revision
    unchanged or the same for all prompts."""
    cache: str = setting("{run}/answers/answers.sqlite", semantic=False)
    """Every answer that was ever received, by the content of its question; survives `CLEAN=1`."""
    revisions: RevisionsSettings | None = None
    """The supervised stage."""
    preferences: PreferencesSettings | None = None
    """The preference stage."""
