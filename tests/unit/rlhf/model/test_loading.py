"""What is said when a model cannot be loaded."""

from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.loading import check_model_path


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_missing_model_folder_is_not_mistaken_for_a_hub_id(path: str) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        check_model_path(path)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Backbone.load(tmp_path)
