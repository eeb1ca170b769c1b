import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from labeling.commands.files import reward_command
from tests.support.make_environment import make_environment


@pytest.mark.parametrize("folder", ["labels", "my labels", "it's, [50 %] #1", 'a "quoted" one', "costs $5"])
def test_the_command_after_an_export_arrives_as_one_setting(tmp_path: Path, root: Path, folder: str) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv))\n")
    stand_in.chmod(0o755)
    manifest = Path(folder) / "export" / "manifest.json"
    command = f"{reward_command(manifest)} VENV=none PYTHON={stand_in}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=root,
        env=make_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, value = json.loads(done.stdout)[-1].partition("reward.rankings=")
    assert yaml.safe_load(value) == [{"path": str(manifest)}]
