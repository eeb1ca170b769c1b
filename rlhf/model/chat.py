"""Text ↔ token ids: what a chat template renders, and the tokenizer's own special tokens.

What every stage relies on:

- The ids of a prompt are the same whichever completion follows it.
- Prompt ids + completion ids decode to the prompt followed by the completion. Tokenizers of the SentencePiece
  kind begin whatever they encode with a space, so a completion cannot simply be encoded by itself: see
  `_continuation`.
- A completion ends with one end-of-sequence token (EOS), so that the policy learns to end.
- Text in the data that reads like a special token ("</s>") stays text: it cannot end or forge a turn. Tags
  that a template reads in messages ("<think>", "</think>") are what they are in a sampled response: tokens.

A tokenizer is one of transformers, of any kind; one that drops characters it does not know keeps doing so.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from rlhf.data.records import Message, Turns
from rlhf.errors import UserError
from rlhf.model.answers import render_answer
from rlhf.model.rendering import marked, render, template_text
from rlhf.model.vocabulary import word_pad
from rlhf.settings.groups import LengthSettings, SamplingSettings

Outcome = Literal["kept", "truncated", "dropped"]
Policy = Literal["error", "drop", "truncate_left"]

_ANCHORS = ("\n", "a", ".")
_NUM_CONTEXT = 16  # how a token decodes depends on its neighbours at most, and on being the first
_FIRST_NONCHARACTER = 0xFDD0  # of Unicode: a code point that no text has
_TAG = re.compile(r"</?([A-Za-z_][\w:-]*)>")
_MARK = re.compile(
    r"<\|[A-Za-z_]\w{0,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?start_of_turn>|<end_of_turn>|<<SYS>>|<</SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
"""Marks of turns in common chat templates."""
_OWN_MARK = re.compile(r"<\|[^|<>\s{}']{1,40}\|>|\[/?[A-Z][A-Z_]{2,}\]|</?\w+_of_\w+>|<</?[A-Z]+>>")
_SPEAKERS = ("system", "user", "assistant", "tool", "human", "bot", "model", "developer")


def encode_prompt(tokenizer: Any, prompt: str | Turns) -> list[int]:
    """The ids of a prompt: of its text, after the BOS that the tokenizer may add, or of the chat template.

    A rendered conversation ends with the header of the assistant's turn.

    Raises:
        UserError: a conversation and no chat template, or one that refuses it; a prompt that gives no ids.
    """
    if isinstance(prompt, str):
        ids = _encode_pieces(tokenizer, _cut(prompt, _special_tokens(tokenizer)), _leading_ids(tokenizer))
    else:
        mark, turns = _marked(tokenizer, prompt)
        ids = _encode_pieces(tokenizer, render(tokenizer, turns, open_answer=True).split(mark), [])
    if not ids:
        fix = "Leave out empty prompts, or choose a tokenizer that begins every text with a token."
        raise UserError("a prompt has no tokens", fix=fix)
    return ids


def encode_completion(
    tokenizer: Any,
    prompt: str | Turns,
    completion: str | Message,
    *,
    prompt_ids: Sequence[int] | None = None,
    eos: Sequence[int] = (),
    exact: bool = True,
) -> list[int]:
    """The ids that follow those of `prompt`: the completion's, and EOS, once, at the end.

    After a conversation they are what the chat template writes there, up to its first EOS. `prompt_ids`
    saves encoding the prompt again. `eos` holds every id that ends a response (see `eos_ids`), and the first
    of them is the one to append where none is; left out, it is the tokenizer's. Not `exact`, what the chat
    template changes in an answer is none of the caller's business.

    Raises:
        AnswerChangedError: the chat template leaves out, changes or adds to what the completion says.
        UserError: as `encode_prompt`; no EOS; a template that changes a conversation once it is answered.
    """
    ends = tuple(eos) or eos_ids(tokenizer)
    if prompt_ids is None:
        prompt_ids = encode_prompt(tokenizer, prompt)
    answer = Message("assistant", completion) if isinstance(completion, str) else completion
    if isinstance(prompt, str):
        pieces = _cut(answer.content, _special_tokens(tokenizer))
    else:
        mark, turns = _marked(tokenizer, (*prompt, answer))
        pieces = render_answer(tokenizer, turns, ends=ends, exact=exact).split(mark)
    ids = _encode_pieces(tokenizer, pieces, prompt_ids)[len(prompt_ids) :]
    if isinstance(prompt, str):
        return [*ids, ends[0]]
    ending = next((position for position, token in enumerate(ids) if token in ends), None)
    return [*ids, ends[0]] if ending is None else ids[: ending + 1]


def decode_completion(tokenizer: Any, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add after the prompt, with its leading space and without EOS and special tokens."""
    before = _decode(tokenizer, prompt_ids)
    text = _decode(tokenizer, [*prompt_ids, *ids])
    if text.startswith(before):
        return text[len(before) :]
    # Half a character was sampled: a byte-fallback decoder then also spoils the prompt's last bytes.
    anchor = _encode(tokenizer, "a")
    return _decode(tokenizer, [*anchor, *ids])[len(_decode(tokenizer, anchor)) :]


def continuation_ids(tokenizer: Any, before: Sequence[int], text: str) -> list[int]:
    """Ids of a text where it follows the ids `before`; none of its own words becomes a special token."""
    pieces = _cut(text, _special_tokens(tokenizer))
    return _encode_pieces(tokenizer, pieces, before)[len(before) :]


def reads_like_tokens(tokenizer: Any, text: str) -> bool:
    """Whether a text holds what would be a special token, if texts could hold any, or a chat template's mark.

    Templates write marks that the tokenizer has no tokens for, and data sets hold other templates' marks.
    """
    return (
        len(_cut(text, _special_tokens(tokenizer))) > 1
        or _MARK.search(text) is not None
        or any(mark in text for mark in _marks_of(tokenizer))
    )


def _marks_of(tokenizer: Any) -> set[str]:
    """What the tokenizer's chat template writes between turns, as far as it looks like a mark."""
    template = tokenizer.chat_template
    return set(_OWN_MARK.findall(template_text(tokenizer))) if template else set()


def prompt_text(prompt: str | Turns) -> str:
    """A prompt as people and scorers read it: its text, a lone message's, or "role: content" of each."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return _readable(prompt[0])
    return "\n\n".join(f"{message.role}: {_readable(message)}" for message in prompt)


def _readable(message: Message) -> str:
    """What a message says, its tool calls and the like included."""
    return "\n".join(part for part in (message.content, message.more) if part)


def eos_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """Every id that ends a response, the tokenizer's own first.

    Raises:
        UserError: neither the tokenizer nor the generation settings name one.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    others = configured if isinstance(configured, list | tuple) else [configured]
    ids = [int(token) for token in (tokenizer.eos_token_id, *others) if token is not None]
    if not ids:
        fix = "Choose a model whose tokenizer has an `eos_token`."
        raise UserError("the tokenizer has no token that ends a text (EOS)", fix=fix)
    return tuple(dict.fromkeys(ids))


def fit(
    prompt_ids: Sequence[int],
    completion_len: int,
    max_length: int,
    policy: Policy,
    *,
    bos_token_id: int | None = None,
    sampled: bool = False,
    where: str | None = None,
    fix: str | None = None,
) -> tuple[list[int] | None, Outcome]:
    """The prompt's ids that go before a completion of `completion_len` tokens within `max_length` tokens.

    `truncate_left` removes tokens after a leading BOS, keeps one token of the prompt at least, and never
    touches the completion: where that is too long by itself, the example is dropped (None), as by `drop`.
    `sampled` says that the completion is still to come, and may have so many tokens; `where` and `fix` (see
    `length_fix`) go into the error.

    Raises:
        UserError: it does not fit, and the policy is `error`.
    """
    needed = len(prompt_ids) + completion_len
    if needed <= max_length:
        return list(prompt_ids), "kept"
    if policy == "error":
        what = f"prompt ({len(prompt_ids)}) and completion ({completion_len})"
        if sampled:
            what = f"the prompt ({len(prompt_ids)}) and a response of the longest kind ({completion_len})"
        raise UserError(
            f"{what} need {needed} tokens, and there is room for {max_length}",
            where=where,
            fix=fix or "Set `over_length` to `truncate_left` or `drop`, or raise `max_tokens`.",
        )
    head = [token for token in prompt_ids[:1] if token == bos_token_id]
    num_kept = max_length - completion_len - len(head)
    if policy == "drop" or num_kept < 1:
        return None, "dropped"
    return [*head, *prompt_ids[-num_kept:]], "truncated"


def length_fix(
    section: str, length: LengthSettings, *, context: int, max_response_tokens: int | None = None
) -> str:
    """What helps where a record of the stage `section` does not fit; `max_response_tokens` if it samples."""
    ways = [f"set `{section}.length.over_length` to truncate_left or drop"]
    if max_response_tokens is not None:
        ways.append(f"lower `{section}.sampling.max_response_tokens` (now {max_response_tokens})")
    if length.max_tokens is not None and length.max_tokens < context:
        ways.append(
            f"raise `{section}.length.max_tokens` (now {length.max_tokens}; the model sees {context})"
        )
    else:
        ways.append(f"take a model that sees more than {context} tokens")
    return f"Shorten the record, {', '.join(ways[:-1])}, or {ways[-1]}."


def check_room(section: str, length: LengthSettings, sampling: SamplingSettings, *, context: int) -> None:
    """Check that the longest response of the stage `section` leaves room for a prompt.

    Raises:
        UserError: it does not, and so no prompt could ever be sampled from.
    """
    limit, wanted = min(length.max_tokens or context, context), sampling.max_response_tokens
    if wanted < limit:
        return
    if limit < context:
        room, other = f"`{section}.length.max_tokens` is {limit}", f"raise `{section}.length.max_tokens`"
    else:
        room = f"the model's context is {limit} tokens"
        other = "take a model with a longer one (`model.scratch.max_length`, if it is made from scratch)"
    raise UserError(
        f"responses of up to {wanted} tokens leave no room for a prompt: {room}",
        where=f"{section}.sampling.max_response_tokens",
        fix=f"Set it well below {limit}, so that the prompts fit too, or {other}.",
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _decode(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = True) -> str:
    if skip_special and word_pad(tokenizer) is not None:
        # The pad is a word too, and as a special token it would vanish from texts.
        ids = [token for token in ids if token not in _dropped(tokenizer)]
        skip_special = False
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    )


def _dropped(tokenizer: Any) -> set[int]:
    """Ids of special tokens, which are no text, without a pad that is a word."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (special | set(tokenizer.all_special_ids)) - {word_pad(tokenizer)}


def _leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: BOS, mostly. What it puts after one is left out."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    num_text = encoded["special_tokens_mask"].count(0)
    num_leading = encoded["special_tokens_mask"].index(0) if num_text else len(encoded["input_ids"])
    return list(encoded["input_ids"][:num_leading])


def _encode_pieces(tokenizer: Any, pieces: Sequence[str], before: Sequence[int]) -> list[int]:
    """`before` and the ids of `pieces`, none of which is merged with what stands before it."""
    ids = list(before)
    started = not set(ids) <= set(tokenizer.all_special_ids)
    for piece in pieces:
        if piece:
            ids += _continuation(tokenizer, ids, piece) if started else _encode(tokenizer, piece)
            started = True
    return ids


def _continuation(tokenizer: Any, before: Sequence[int], text: str) -> list[int]:
    """Ids that decode to exactly `text` where they follow the ids `before`.

    A SentencePiece-like tokenizer takes what it encodes for the beginning of a text, and puts a space before
    it. So, unless the text's own ids decode rightly, it is encoded behind an anchor (a character whose ids
    turn out not to merge with the text's) and the anchor's ids are taken away.
    """
    context = list(before[-_NUM_CONTEXT:])
    expected = _decode(tokenizer, context, skip_special=False) + text
    candidates = [_encode(tokenizer, text)]
    for anchor in ("", *_ANCHORS):
        if anchor:
            anchor_ids, ids = _encode(tokenizer, anchor), _encode(tokenizer, anchor + text)
            if ids[: len(anchor_ids)] != anchor_ids:
                continue
            candidates.append(ids[len(anchor_ids) :])
        if _decode(tokenizer, [*context, *candidates[-1]], skip_special=False) == expected:
            return candidates[-1]
    # The tokenizer cannot express this text, or all the context is bytes of characters that begin before it.
    # An anchor at least adds no space.
    return candidates[min(1, len(candidates) - 1)]


def _special_tokens(tokenizer: Any, template: str = "", *, by_assistant: bool = False) -> list[str]:
    """Texts that the tokenizer, or this chat template, gives a meaning of their own.

    Not so the tags that the template reads in messages, with an end tag each: a response that holds them is
    drawn as these tokens, and what it says is parted by them.
    """
    decoder = tokenizer.added_tokens_decoder
    pad = word_pad(tokenizer)
    added = {token.content: token.special for number, token in decoder.items() if number != pad}
    found = []
    for text, is_special in added.items():
        is_named = bool(text.strip()) and text in template
        is_tag = is_named and _is_tag(tokenizer, text, added) and (by_assistant or not is_special)
        if (is_special or is_named) and not is_tag:
            found.append(text)
    return found


def _is_tag(tokenizer: Any, text: str, added: Collection[str]) -> bool:
    """Whether the token is one of a pair `<x>`, `</x>`, neither of which begins or ends texts or turns."""
    match = _TAG.fullmatch(text)
    if match is None or match[1] in _SPEAKERS:
        return False
    own = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    return all(tag in added and tag not in own for tag in (f"<{match[1]}>", f"</{match[1]}>"))


def _cut(text: str, special_tokens: Iterable[str]) -> list[str]:
    """The text in pieces, cut so that no piece holds a special token.

    Encoded piece by piece, it cannot become one. (`split_special_tokens` of transformers does this for BPE,
    and fails for Unigram vocabularies, where "</s>" is an ordinary entry too.)
    """
    longest_first = sorted(
        (re.escape(token) for token in special_tokens if len(token) > 1), key=len, reverse=True
    )
    pattern = re.compile("|".join(longest_first) or "(?!)")
    pieces, start = [], 0
    while match := pattern.search(text, start):
        pieces.append(text[start : match.start() + 1])
        start = match.start() + 1
    return [*pieces, text[start:]]


def _marked(tokenizer: Any, turns: Turns) -> tuple[str, Turns]:
    """A character that is in none of the messages, and the messages with it wherever they are to be cut."""
    everything = "".join(message.role + message.content + message.more for message in turns)
    mark = next(chr(code) for code in itertools.count(_FIRST_NONCHARACTER) if chr(code) not in everything)
    template = template_text(tokenizer)
    special = {
        by_assistant: _special_tokens(tokenizer, template, by_assistant=by_assistant)
        for by_assistant in (False, True)
    }

    def marked_text(turn: Message, text: str) -> str:
        return mark.join(_cut(text, special[turn.role == "assistant"]))

    return mark, marked(turns, marked_text)
