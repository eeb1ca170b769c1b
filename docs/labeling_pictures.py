"""The pictures of docs/labeling.md: python -m docs.labeling_pictures [--browser]."""

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labeling.sessions.adjudication import Adjudication
from labeling.sessions.labeling_session import LabelingSession
from labeling.sessions.session import Session, new_submission
from labeling.store.items import Item
from labeling.store.judgements import Judgement, Task
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from labeling.terminal.app import LabelerApp
from rlhf.commands.process import run_command
from rlhf.data.records import Rank
from rlhf.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PROMPT = "Why does bread rise when it is baked, and what happens without salt? Explain it to a ten-year-old."
ANSWERS = (
    "Bread rises because yeast, a tiny living thing, eats the sugar in the flour and breathes out gas. "
    "The gas makes bubbles, and the dough is stretchy enough to hold them, like a balloon. Salt slows the "
    "yeast down and makes the dough stronger, so without it the bread rises too fast and falls flat.",
    "As everybody knows, bread rises! It is a wonderful thing. Bread has been baked for thousands of years "
    "in many countries, and there are many kinds of bread, such as rye bread, white bread and flat bread. "
    "I hope that this helps, and I am happy to answer more questions about bread.",
    "Salt makes bread rise. Without salt there is no gas in the dough, so it stays flat like a pancake.",
    "Yeast blows bubbles into the dough, and the heat of the oven makes them bigger until the crust is hard. "
    "Salt keeps the yeast calm and gives taste.",
)
SIZES = ((80, 24), (160, 50))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.labeling_pictures", description=__doc__)
    parser.add_argument("--browser", action="store_true", help="also the one of Chromium")
    arguments = parser.parse_args(argv)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Project.create(folder, LabelingRules(overlap=4)) as project:
        project.add(NewItem(Item(prompt=f"{PROMPT}{' ' * n}", completions=ANSWERS)) for n in range(3))
        for width, height in SIZES:
            with Session(project, "ann") as session:
                path = IMAGES / f"labeling-{width}x{height}.svg"
                path.write_text(asyncio.run(_terminal(session, (width, height))), encoding="utf-8")
                print(path.relative_to(ROOT))
        _label(project)
        with Adjudication(project, "eva", threshold=0.7) as adjudication:
            path = IMAGES / "labeling-adjudicate.svg"
            path.write_text(asyncio.run(_terminal(adjudication, SIZES[0])), encoding="utf-8")
            print(path.relative_to(ROOT))
        if arguments.browser:
            _browser(project, IMAGES / "labeling-browser.png")
    return 0


def _label(project: Project) -> None:
    """Let three labelers disagree."""
    said: dict[str, tuple[Rank, ...]] = {"bo": (1, 3, 4, 2), "cy": (2, "F", 3, 1), "di": (4, 2, 1, 3)}
    for name, ranks in said.items():
        with Session(project, name) as session:
            while isinstance(task := session.next(), Task):
                shown = tuple(ranks[ANSWERS.index(text)] for text in task.completions)
                note = "the one about the crust is shorter" if name == "cy" else ""
                session.submit(task, Judgement(shown, note=note), submission=new_submission())


async def _terminal(session: LabelingSession, size: tuple[int, int]) -> str:
    app = LabelerApp(session)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        while app.background.num_waiting:
            await pilot.pause(0.05)
        await pilot.press("home", "0", "1", "f", "3")
        await pilot.pause(0.2)
        picture = app.export_screenshot(title="Labeling")
    app.finish()
    return re.sub(r"@font-face {.*?}\s*", "", picture, flags=re.DOTALL)  # nothing from elsewhere


def _browser(project: Project, path: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("Chromium is not installed", fix="Install it, or leave --browser out.")
    command = [sys.executable, "-m", "labeling", "serve", "--project", project.where, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        [url] = re.findall(r"http://\S+", server.stdout.readline())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 980, "height": 600})
            page.goto(f"{url}/#{project.issue_token('ann')}")
            page.wait_for_selector("body.-first-byte")
            page.wait_for_timeout(3000)
            for key in ("Home", "1", "f", "3"):
                page.keyboard.press(key)
                page.wait_for_timeout(300)
            page.screenshot(path=path)
            browser.close()
        server.terminate()
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))
