"""The constitution against `transformers serve`, which has no log-probabilities: votes, and typed decisions.

Runs where `pip install 'transformers[serving]'` was done and ../shared has TinyStories-656K.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_serve_available

from labeling.__main__ import main
from rlhf.commands.process import run_command
from tests.support.feedback import lines, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs transformers[serving]"),
]

TEMPLATE = """\
{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}

{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
LABELS = {"labels": {"choice": ["him", "her"]}}
"""Single tokens of this model, which "A" and "B" are not: what its typed decisions are read from."""
PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story-teller with a chat template, told to sample."""
    folder = tmp_path_factory.mktemp("served") / "stories"
    shutil.copytree(shared / "models" / "tinystories-656k", folder, copy_function=shutil.copyfile)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (model.parent / "decision.json").write_text(json.dumps(LABELS))
    command = [
        *(str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--device", "cpu"),
        *(
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--decision-config",
            str(model.parent / "decision.json"),
        ),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while not listens(port):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def compare(folder: Path, url: str, model: Path, **endpoint: Any) -> dict[str, Any]:
    """Let it compare stories, in which it says A or B seldom; the report's metrics."""
    items = [
        {"prompt": f"Once there was a {who}.", "completions": [" It ran home.", " It was sad and cried."]}
        for who in ("cat", "boy", "bird")
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    asked = {"model": str(model), "max_attempts": 60, "votes": 3, "vote_tokens": 2, **endpoint}
    recipe = write_recipe(folder, url, endpoint=asked, preferences={"items": str(folder / "items.jsonl")})
    assert run_command(main, ["preferences", "--config", str(recipe)]) == 0
    found: dict[str, Any] = json.loads((folder / "runs/run/preferences/report.json").read_text())
    return found


def test_without_log_probabilities_votes_are_sampled(server: str, model: Path, tmp_path: Path) -> None:
    found = compare(tmp_path, server, model)
    assert set(found["preferences"]["methods"]) == {"votes"}
    assert found["preferences"]["pairs_decided"] >= 1
    assert found["running"]["failures"].keys() <= {"unusable_answer"}


def test_its_typed_decisions_have_probabilities(server: str, model: Path, tmp_path: Path) -> None:
    found = compare(tmp_path, server, model, answers="typed")
    assert found["preferences"]["methods"] == {"typed": 6}
    assert found["running"]["failures"] == {}
    rows = lines(tmp_path / "runs/run/preferences/rankings.jsonl")
    assert len({p for row in rows for *_, p in row["comparisons"]}) == 3
