"""Where a tokenizer and a model's embedding do not match: tokens without a row, rows without a token.

- A token without a row cannot be looked up: such a pair of tokenizer and model is refused.
- A row without a token (vocabularies are padded to a round number) can be sampled, and is nothing in a text.
  It is left out of every distribution, in sampling and in all log-probabilities alike.
- A tokenizer without a pad token gets one of its own, never a word: what pads is left out of decoded text.
"""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import UserError

# Shapes: N tokens, V vocabulary.

ADDED_PAD = "<|added_pad|>"
"""The pad token that a tokenizer without one is given. It was never trained, and is never sampled."""
_NEVER = -1e9
"""The logit of an id that is never drawn: its probability is 0. Minus infinity times that is no number."""
_MEDIA = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token", "boa_token", "eoa_token")
"""Place-holders that a tokenizer of texts may have from a model that also sees and hears."""
_MARKER = re.compile(r"[<>\[\]{}|]|pad", re.IGNORECASE)
"""What tells a marker, as `<unk>` or `[PAD]`, from a word."""


def check_vocabulary(tokenizer: Any, num_rows: int, *, where: str) -> None:
    """Check that every token of the tokenizer has one of the embedding's rows.

    Raises:
        UserError: one has none.
    """
    media = {getattr(tokenizer, name, None) for name in _MEDIA}
    words: dict[str, int] = tokenizer.get_vocab()
    # Texts that read like a special token stay text, so that no place-holder comes of them.
    beyond = {word: token for word, token in words.items() if token >= num_rows and word not in media}
    if not beyond:
        return
    word, token = min(beyond.items(), key=lambda item: item[1])
    raise UserError(
        f"the tokenizer has {len(tokenizer):,} tokens, and the model's embedding {num_rows:,} rows: "
        f"{len(beyond):,} tokens have none (the first is {word!r}, id {token:,})",
        where=where,
        fix="Let the embedding grow (`model.resize_token_embeddings(len(tokenizer))`, then save model and "
        "tokenizer in one folder), or give the tokenizer that the model was trained with.",
    )


def unsampled_ids(tokenizer: Any, num_rows: int, *, eos_ids: Collection[int]) -> list[int]:
    """Rows of the output head that no response may hold: they are no token, or the pad that was added to pad.

    An EOS that the generation settings name is kept: it ends a response, and has no text anyway.
    """
    words: dict[str, int] = tokenizer.get_vocab()
    if not words:
        return []
    known = set(words.values()) | set(eos_ids)
    known.discard(words.get(ADDED_PAD, -1))
    return [token for token in range(num_rows) if token not in known]


def exclude(logits_NV: Tensor, excluded: Tensor | None) -> Tensor:
    """The logits, which may be changed in place, with those of the `excluded` ids far below all others."""
    if excluded is None:
        return logits_NV
    if logits_NV.requires_grad:
        return logits_NV.index_fill(-1, excluded, _NEVER)
    return logits_NV.index_fill_(-1, excluded, _NEVER)


def word_pad(tokenizer: Any) -> int | None:
    """The pad's id, if it is a word, as one that earlier versions chose for a tokenizer without a pad."""
    content = getattr(tokenizer, "pad_token", None)
    others = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) if content else ()
    if content is None or content in others or _MARKER.search(content):
        return None
    return int(tokenizer.pad_token_id)


def add_pad(tokenizer: Any, model: Any) -> int:
    """Give the tokenizer `ADDED_PAD`, and the model a row for it if it has none to spare; the token's id.

    Raises:
        UserError: the embedding cannot grow.
    """
    tokenizer.add_special_tokens({"pad_token": ADDED_PAD})
    pad = int(tokenizer.pad_token_id)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if pad < num_rows:
        return pad
    try:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(pad + 1, mean_resizing=False)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the tokenizer has no pad token, and the model's embedding cannot grow by one ({error})",
            where=type(model).__name__,
            fix="Give the tokenizer a pad token that has a row, and is neither a word nor an EOS.",
        ) from error
    _fill_new_rows(model, num_rows)
    return pad


@torch.no_grad()
def _fill_new_rows(model: Any, num_old: int) -> None:
    """Give the rows from `num_old` on the mean of those before: drawn by chance, one could be likely."""
    head = model.get_output_embeddings()
    weights: list[nn.Parameter] = [model.get_input_embeddings().weight, head.weight]
    if getattr(head, "bias", None) is not None:
        weights.append(head.bias)
    for weight in weights:
        weight[num_old:] = weight[:num_old].float().mean(0).to(weight.dtype)
