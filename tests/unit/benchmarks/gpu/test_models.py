from pathlib import Path

import pytest
import torch

from benchmarks.base_model import base_tensors, word_tokenizer
from benchmarks.gpu.models import random_base
from benchmarks.gpu.plan import TOYS
from rlhf.model.backbone import Backbone
from rlhf.settings.groups import ModelSettings, Precision


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_base_quantized_weight_by_weight_is_the_one_that_loading_makes(
    precision: Precision, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    random_base(TOYS[1], "fp32", device="cpu", seed=5).save(tmp_path)
    # Its own has an EOS that no row of the head can predict, which loading would refuse.
    word_tokenizer(TOYS[1].vocab_size).save_pretrained(tmp_path)
    loaded = Backbone.load(tmp_path, settings=ModelSettings(path=str(tmp_path), precision=precision))
    made = random_base(TOYS[1], precision, device="cpu", seed=5)
    theirs, ours = base_tensors(loaded), base_tensors(made)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.hidden(ids), loaded.hidden(ids))


def test_a_random_base_is_the_same_under_the_same_seed_alone() -> None:
    bases = [base_tensors(random_base(TOYS[0], "bf16", device="cpu", seed=seed)) for seed in (1, 1, 2)]
    same = [all(torch.equal(v, other[k]) for k, v in bases[0].items()) for other in bases]
    assert same == [True, True, False]
