"""A labeler's screen under test: keys go in by Textual's pilot, and what is drawn comes out as text."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from labeling.sessions.labeling_session import LabelingSession
from labeling.store.items import Item
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from labeling.terminal.app import LabelerApp

WAIT_SECONDS = 20.0


class Screen:
    """The running program."""

    def __init__(self, app: LabelerApp, pilot: Pilot[None]) -> None:
        self.app, self._pilot = app, pilot

    async def press(self, *keys: str) -> None:
        """Press keys one after the other, each when the last has been drawn and stored."""
        for key in keys:
            await self._pilot.press(key)
            await self.settled()

    async def type(self, *keys: str) -> None:
        """Press keys without waiting for the store."""
        await self._pilot.press(*keys)
        await self._pilot.pause()

    async def settled(self) -> None:
        await self.until(lambda: not self.app.background.num_waiting)
        await self._pilot.pause()

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"it never came to that:\n{self.text}"
            await asyncio.sleep(0.01)

    async def resize(self, width: int, height: int) -> None:
        await self._pilot.resize_terminal(width, height)
        await self.settled()

    @property
    def rows(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.rows)


@asynccontextmanager
async def shown(session: LabelingSession, *, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Screen]:
    """The program with its first item on the screen."""
    app = LabelerApp(session)
    async with app.run_test(size=size) as pilot:
        screen = Screen(app, pilot)
        await pilot.pause()
        await screen.settled()
        yield screen
    app.finish()
    if app.failure is not None:
        raise app.failure


def play(
    session: LabelingSession,
    story: Callable[[Screen], Coroutine[Any, Any, None]],
    *,
    size: tuple[int, int] = (80, 24),
) -> None:
    """Run `story` on a screen."""

    async def run() -> None:
        async with shown(session, size=size) as screen:
            await story(screen)

    asyncio.run(run())


def small_project(where: str, *completions: str, num_items: int = 3, **rules: object) -> Project:
    """A project of items with these answers, or three short ones."""
    project = Project.create(where, LabelingRules.model_validate({"gold_share": 0.0, **rules}))
    texts = completions or ("answer a", "answer b", "answer c")
    project.add(NewItem(Item(prompt=f"question {n}", completions=texts)) for n in range(num_items))
    return project
