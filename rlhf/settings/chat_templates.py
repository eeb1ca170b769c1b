"""What `chat_template` names → the text of a chat template: a known name, a file, or the text itself.

The text takes the place of the name before anything is hashed or run, so a template file that has changed is
another setting.
"""

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

_JINJA = ("{{", "{%", "{#")
_FOLDER_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")

# Answers end with the tokenizer's own EOS: in a model made for ChatML that is <|im_end|>, and any other would
# learn the mark as words.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{{ eos_token if message.role == 'assistant' else '<|im_end|>' }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + ' ' }}"
    "{% elif message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}"
    "{% else %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
    "{% elif message.role == 'assistant' %}"
    "{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}"
    "{% else %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
OWN = {"chatml": CHATML, "zephyr": ZEPHYR, "vicuna": VICUNA, "alpaca": ALPACA}


def resolve_chat_template(value: str, *, setting: str, folders: tuple[Path, ...] = ()) -> str:
    """The template that `value` is, names, or is the path of; `folders` are where relative paths begin.

    Raises:
        UserError: it is none of these, or does not parse.
    """
    if any(sign in value for sign in _JINJA):
        return _parsed(value, setting)
    if value.lower() in OWN:
        return OWN[value.lower()]
    path = _existing(value, folders)
    if path is not None:
        return _of_path(path, setting)
    theirs = _of_trl()
    if value.lower() in theirs:
        return _of_path(theirs[value.lower()], setting)
    names = [*OWN, *theirs]
    close = difflib.get_close_matches(value.lower(), names, n=1)
    fix = f"Did you mean `{close[0]}`? " if close else f"Known names: {', '.join(names)}. "
    raise UserError(
        f"`{value}` is no chat template: no known name, no file, and no Jinja text",
        where=setting,
        fix=f"{fix}A path begins in the working directory or the recipe's folder.",
    )


def _existing(value: str, folders: tuple[Path, ...]) -> Path | None:
    if not value.strip() or "\n" in value:
        return None
    for folder in (Path(), *folders):
        path = folder / Path(value).expanduser()
        try:
            if path.exists():
                return path
        except OSError:  # too long for a path
            return None
    return None


def _of_path(path: Path, setting: str) -> str:
    if path.is_dir():
        inner = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
        if not inner:
            fix = f"Name a file, or a model's folder with one of {', '.join(_FOLDER_FILES)}."
            raise UserError(f"the folder {path} holds no chat template", where=setting, fix=fix)
        path = inner[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error})", where=setting, fix="Name a text file.") from None
    if path.suffix == ".json":
        text = _of_json(text, path, setting)
    if not any(sign in text for sign in _JINJA):
        fix = "Write a Jinja template that loops over `messages`."
        raise UserError(f"the file {path} holds no Jinja template", where=setting, fix=fix)
    return _parsed(text, f"{setting}, {path}")


def _of_json(text: str, path: Path, setting: str) -> str:
    """The template in a tokenizer's configuration; of several, the one called `default`."""
    fix = 'Give a file with {"chat_template": "…"}, or one that holds the template alone.'
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", where=setting, fix=fix) from None
    found = values.get("chat_template") if isinstance(values, dict) else values
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise UserError(f"{path} has no `chat_template`", where=setting, fix=fix)
    return found


def _parsed(text: str, where: str) -> str:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # {% generation %} marks what an assistant says; transformers' own environment knows it, and nothing else.
    plain = text
    for tag in ("generation", "endgeneration"):
        for begin in ("{%-", "{%"):
            for end in ("-%}", "%}"):
                plain = plain.replace(f"{begin} {tag} {end}", "")
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateSyntaxError as error:
        fix = "Correct the template."
        raise UserError(
            f"the chat template does not parse: {error.message} (line {error.lineno})", where=where, fix=fix
        ) from None
    return text


def _of_trl() -> dict[str, Path]:
    """The chat templates of well-known models that come with TRL: name → file."""
    found = importlib.util.find_spec("trl")
    folders = list(found.submodule_search_locations or ()) if found else []
    paths = [path for folder in folders for path in sorted(Path(folder, "chat_templates").glob("*.jinja"))]
    return {path.stem: path for path in paths if not path.stem.endswith("training")}
