import socket
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from rlhf.errors import UserError
from rlhf.hub import Kind, check_hub, local_model_folder


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of a hub where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for module in ("constants", "hf_api"):
        monkeypatch.setattr(f"huggingface_hub.{module}.ENDPOINT", address, raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    return address


@pytest.mark.parametrize(("kind", "instead"), [("model", "folder"), ("dataset", "file")])
def test_a_hub_out_of_reach_is_told_at_once_with_the_id(
    nobody: str, capsys: pytest.CaptureFixture[str], kind: Kind, instead: str
) -> None:
    with pytest.raises(UserError, match=f"look for the {kind} `nobody/nothing`") as caught:
        check_hub("nobody/nothing", kind=kind, where="model.path=nobody/nothing")
    assert f"Check the network, or give the path of a local {instead}." in str(caught.value)
    assert capsys.readouterr().err == f"looking for the {kind} nobody/nothing at {nobody}\n"


def test_a_copy_in_the_cache_needs_no_hub(nobody: str, tmp_path: Path) -> None:
    (tmp_path / "models--nobody--nothing" / "snapshots" / "abc").mkdir(parents=True)
    check_hub("nobody/nothing", kind="model", where=nobody)


def test_nothing_is_asked_offline(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_hub("nobody/nothing", kind="model", where=nobody)
    assert capsys.readouterr().err == ""


def test_a_model_is_in_a_folder_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_model_folder("owner/name", where="x") is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert local_model_folder("owner/name", where="x") == Path("owner/name")
    (tmp_path / "owner" / "file").write_text("")
    for path in ("./owner/other", "other", "a/b/c", "~/model", "owner/file"):
        with pytest.raises(UserError, match=r"^model\.path: there is no such model folder"):
            local_model_folder(path, where="model.path")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, nobody: str, kind: Kind) -> None:
    """The libraries themselves try again, for most of a minute."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        for module in ("constants", "hf_api"):
            monkeypatch.setattr(f"huggingface_hub.{module}.ENDPOINT", address, raising=False)
        hang_up = threading.Thread(target=lambda: hub.accept()[0].close())
        hang_up.start()
        with pytest.raises(UserError, match="cannot be reached"):
            check_hub("nobody/nothing", kind=kind, where="here")
        hang_up.join()
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):
            hub.accept()  # nobody has come again
