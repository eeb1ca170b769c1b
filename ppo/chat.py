"""`python -m ppo.chat`: talk to a published policy in the terminal.

A line is a prompt; an empty line or Ctrl-D ends. With a chat template the conversation continues from turn to
turn; without one, or where training knew no conversations, every line stands for itself. `/reference` and
`/policy` switch between the SFT model and the policy, `/new` forgets the conversation.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from typing import cast

from ppo.config import PPOSettings
from rlhf.commands.arguments import Sections, command_parser, load
from rlhf.commands.process import run_command
from rlhf.data.prompt_form import noted_form
from rlhf.data.records import Message
from rlhf.errors import UserError
from rlhf.runs.date import date_of_run, freeze_date
from rlhf.runs.stage import require
from rlhf.settings.groups import ModelSettings, RunSettings, SamplingSettings
from rlhf.settings.recipe import Recipe

DESCRIPTION = (
    "Talk to the policy that the PPO stage published: a line is a prompt.\n"
    "Say /reference to talk to the SFT model instead, /policy to go back, /new to forget the conversation;\n"
    "an empty line or Ctrl-D ends."
)
HELP = "empty line or Ctrl-D: end; /new: forget; /policy, /reference: who answers"


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_intermixed_args(argv)
    recipe = load(arguments)
    run = recipe.run_folder
    require(run, "sft")
    require(run, "ppo")
    freeze_date(date_of_run(run), given=recipe.model.date)
    if arguments.temperature is not None and not arguments.temperature > 0:
        raise UserError("the temperature must be above 0", where="--temperature", fix="Try 0.7.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is piped in need not be UTF-8
    talk = Conversation(recipe, temperature=arguments.temperature, seed=arguments.noise)
    for line in _lines(sys.stdin.isatty()):
        try:
            print(talk.answer(line), flush=True)
        except UserError as error:  # one line too many for the context must not end the session
            print(error, file=sys.stderr, flush=True)
    return 0


class Conversation:
    """The turns so far, and who answers."""

    def __init__(self, recipe: Recipe, *, temperature: float | None, seed: int) -> None:
        from rlhf.model.backbone import Backbone
        from rlhf.parallel.start import start_process

        settings = cast(PPOSettings, recipe.section("ppo"))
        device = start_process(recipe.run).device
        self.backbone = Backbone.load(
            recipe.run_folder / "sft" / "model", settings=recipe.model, device=device
        )
        self.backbone.load_adapter("policy", recipe.run_folder / "ppo" / "model")
        changes = {} if temperature is None else {"temperature": temperature}
        self.sampling = settings.sampling.model_copy(update=changes)
        self.seed, self.role = seed, "policy"
        self.turns: list[Message] = []
        self.count = 0
        # A line is what a prompt was in training: bare text, if the run's demonstrations were.
        is_plain = noted_form(recipe.run_folder) == "text"
        self.chats = bool(self.backbone.tokenizer.chat_template) and not is_plain

    def answer(self, line: str) -> str:
        """The model's answer to a line, or what a command did."""
        if line in ("/policy", "/reference"):
            self.role = line[1:]
            return f"[{self.role} answers now]"
        if line == "/new":
            self.turns = []
            return "[forgotten]"
        if line.startswith("/"):
            return f"[{HELP}]"
        text = self._sample([*self.turns, Message("user", line)] if self.chats else line)
        if self.chats:
            self.turns += [Message("user", line), Message("assistant", text)]
        return text

    def _sample(self, prompt: str | Sequence[Message]) -> str:
        from rlhf.model.chat import encode_prompt
        from rlhf.sampling.engine import sample
        from rlhf.sampling.rollouts import responses_text

        ids = encode_prompt(self.backbone.tokenizer, prompt if isinstance(prompt, str) else tuple(prompt))
        room = self.backbone.max_length - len(ids)
        if room < 1:
            raise UserError(
                f"the conversation fills the model's context of {self.backbone.max_length} tokens",
                where="chat",
                fix="Say /new to forget what was said, or ask in fewer words.",
            )
        limit = min(room, self.sampling.max_response_tokens)
        settings = self.sampling.model_copy(update={"max_response_tokens": limit})
        self.count += 1
        rollouts = sample(
            self.backbone, [ids], role=self.role, settings=settings, keys=[(self.count,)], seed=self.seed
        )
        return responses_text(self.backbone, rollouts, settings)[0].strip()


def _parser() -> argparse.ArgumentParser:
    used: Sections = {"ppo.sampling": SamplingSettings, "run": RunSettings, "model": ModelSettings}
    parser = command_parser("ppo.chat", DESCRIPTION, lambda: used)
    parser.add_argument("--temperature", type=float, default=None, help="instead of ppo.sampling.temperature")
    parser.add_argument("--noise", type=int, default=0, metavar="N", help="seed of the answers' noise [0]")
    return parser


def _lines(interactive: bool) -> Iterator[str]:
    if interactive:
        print(HELP)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if not line:
            if interactive:
                return
            continue
        yield line


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))
