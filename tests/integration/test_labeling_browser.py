"""`serve`: who gets in, who does not, and the screen in a real browser."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from labeling.browser.server import Server
from labeling.store.database import StoreError
from labeling.store.labels import read_labels
from labeling.store.project import Project
from tests.support.postgres import missing
from tests.support.screens import small_project

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 30.0


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with small_project(str(tmp_path / "project"), presence_seconds=1.0) as made:
        yield made


@contextmanager
def served(project: Project, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "labeling", "serve", "--project", project.where, "--port", "0", *options]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert server.stdout is not None
        yield re.findall(r"http://\S+", server.stdout.readline())[0], server
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert server.returncode in (0, -signal.SIGKILL)


def visit(story: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    async def run() -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as client:
            await asyncio.wait_for(story(client), WAIT_SECONDS)

    asyncio.run(run())


async def enter(client: aiohttp.ClientSession, url: str, token: str) -> int:
    answer = await client.post(f"{url}/enter", data={"token": token}, headers={"Origin": url})
    return answer.status


async def shown(socket: aiohttp.ClientWebSocketResponse, text: str) -> str:
    """What has come until `text` stands in it."""
    seen = ""
    async for message in socket:
        seen += message.data.decode() if isinstance(message.data, bytes) else message.data
        if text in seen:
            return seen
    raise AssertionError(f"closed before {text!r}: {seen[-500:]}")


def programs(project: Project) -> list[int]:
    """The processes that rank in this project."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "rank" in words and f"--project={project.where}" in words:
                found.append(int(entry.name))
    return found


def until_none_runs(project: Project) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while programs(project):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("token", ["", "' OR 1=1 --", "revoked"])
def test_without_a_valid_token_nothing_is_given_and_nothing_runs(project: Project, token: str) -> None:
    if token == "revoked":
        token = project.issue_token("ann")
        project.issue_token("ann")

    async def story(client: aiohttp.ClientSession) -> None:
        assert await enter(client, url, token) == 403
        page = await (await client.get(url)).text()
        assert "Your token" in page
        assert "terminal" not in page
        for headers in ({"Origin": url}, {"Origin": url, "Cookie": "triptych_token=forged"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"{url}/ws?labeler=ann&token=x", headers=headers)
            assert refused.value.status == 403

    with served(project) as (url, _):
        visit(story)
        assert programs(project) == []


def test_a_token_gives_its_own_labelers_screen_and_no_others(project: Project) -> None:
    token = project.issue_token("ann <script>")

    async def story(client: aiohttp.ClientSession) -> None:
        assert await enter(client, url, token) == 200
        page = await client.get(url)
        text = await page.text()
        assert "ann &lt;script&gt;" in text
        assert token not in text
        assert not re.findall(r"https?://(?!127\.0\.0\.1)", text)
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        async with client.ws_connect(f"{url}/ws?labeler=eve", headers={"Origin": url}) as socket:
            assert "ann <script>" in await shown(socket, "question 0")
            for key in "213":
                await socket.send_json(["stdin", key])
            await shown(socket, "All ranked")
            await socket.send_json(["stdin", "\r"])
            await shown(socket, "question 1")

    with served(project) as (url, _):
        visit(story)
        until_none_runs(project)
    [label] = read_labels(project)
    assert label.labeler == "ann <script>"


def test_another_sites_page_opens_no_session(project: Project) -> None:
    token = project.issue_token("ann")

    async def story(client: aiohttp.ClientSession) -> None:
        evil = {"Origin": "https://evil.example"}
        assert (await client.post(f"{url}/enter", data={"token": token}, headers=evil)).status == 403
        assert await enter(client, url, token) == 200
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect(f"{url}/ws", headers=evil)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect(f"{url}/ws")

    with served(project) as (url, _):
        visit(story)


def test_a_new_token_ends_the_sessions_of_the_old_one(project: Project) -> None:
    token = project.issue_token("ann")

    async def story(client: aiohttp.ClientSession) -> None:
        await enter(client, url, token)
        async with client.ws_connect(f"{url}/ws", headers={"Origin": url}) as socket:
            await shown(socket, "question 0")
            await asyncio.to_thread(project.issue_token, "ann")
            async for _ in socket:
                pass
            assert socket.close_code == 1008

    with served(project) as (url, _):
        visit(story)
        until_none_runs(project)


@pytest.mark.parametrize(
    "message",
    ["no json", '["stdin", 5]', '["run", "id"]', "null"],
)
def test_what_is_no_key_ends_the_session_and_not_the_server(project: Project, message: str) -> None:
    token = project.issue_token("ann")

    async def story(client: aiohttp.ClientSession) -> None:
        await enter(client, url, token)
        async with client.ws_connect(f"{url}/ws?width=x&height=1e9", headers={"Origin": url}) as socket:
            await socket.send_str(message)
            async for _ in socket:
                pass
            assert socket.close_code == 1008
        assert (await client.get(url)).status == 200

    with served(project) as (url, _):
        visit(story)


def refuses(_: str) -> str | None:
    raise StoreError("the database refuses (locked)", where="/secret")


def test_a_database_that_refuses_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: aiohttp.ClientSession) -> None:
        async with TestServer(Server(project, project.where).application()) as server:
            url = str(server.make_url("")).rstrip("/")
            assert await enter(client, url, token) == 200
            monkeypatch.setattr(project, "labeler_of", refuses)
            page = await client.get(url)
            assert (page.status, "/secret" in await page.text()) == (503, False)
            assert await enter(client, url, token) == 503
            assert (await client.get(f"{url}/ws", headers={"Origin": url})).status == 503

    token = project.issue_token("ann")
    visit(story)


def test_a_revoked_token_ends_its_session_also_after_the_database_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Socket:
        code: int | None = None

        async def close(self, *, code: int, message: bytes) -> None:
            self.code = code

    async def story(_: aiohttp.ClientSession) -> None:
        check = Server(project, project.where)._recheck(socket, token, "ann")  # type: ignore[arg-type]
        task = asyncio.create_task(check)
        monkeypatch.setattr(project, "labeler_of", refuses)
        await asyncio.sleep(0.2)
        assert (socket.code, task.done()) == (None, False)
        monkeypatch.setattr(project, "labeler_of", labeler_of)
        await asyncio.sleep(0.2)
        assert not task.done()
        await asyncio.to_thread(project.issue_token, "ann")
        await task
        assert socket.code == 1008

    monkeypatch.setattr("labeling.browser.server.RECHECK_SECONDS", 0.02)
    socket, token, labeler_of = Socket(), project.issue_token("ann"), project.labeler_of
    visit(story)


def test_files_beside_the_page_are_not_served(project: Project) -> None:
    async def story(client: aiohttp.ClientSession) -> None:
        for path in ("/page/server.py", "/page/..%2f..%2fproject.py", "/static/", "/static/..%2fserver.py"):
            assert (await client.get(url + path)).status in (403, 404), path

    with served(project) as (url, _):
        visit(story)


def test_a_server_that_is_killed_leaves_no_program_behind(project: Project) -> None:
    token = project.issue_token("ann")

    async def story(client: aiohttp.ClientSession) -> None:
        await enter(client, url, token)
        async with client.ws_connect(f"{url}/ws", headers={"Origin": url}) as socket:
            await shown(socket, "question 0")
            server.kill()

    with served(project) as (url, server):
        visit(story)
        until_none_runs(project)


def test_an_address_that_cannot_be_had_is_said(project: Project) -> None:
    for options in (("--host", "203.0.113.7", "--port", "0"), ("--public-url", "labels.example.org")):
        command = [sys.executable, "-m", "labeling", "serve", "--project", project.where, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert done.returncode == 2
        assert options[1] in done.stderr


def test_the_screen_in_chromium_by_keyboard_alone_and_from_nowhere_else(project: Project) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        missing("chromium", "apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    token = project.issue_token("ann")
    with served(project) as (url, _), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 980, "height": 640})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/#{token}")
        page.wait_for_selector("body.-first-byte", timeout=30_000)
        assert token not in page.url
        deadline = time.monotonic() + WAIT_SECONDS
        while not read_labels(project):
            assert time.monotonic() < deadline
            for key in ("1", "2", "f", "Enter"):
                page.keyboard.press(key)
                page.wait_for_timeout(200)
        # Links to somebody else's screen: on the open page, and on a new one.
        for name, link in (("bo", f"{url}/#{project.issue_token('bo')}"), ("ann", f"{url}/?new#{token}")):
            page.goto(link)
            expect(page).to_have_title(f"Labeling: {name}", timeout=30_000)
            page.wait_for_selector("body.-first-byte", timeout=30_000)
        chromium.close()
        assert all(address.startswith(url) for address in asked)
        until_none_runs(project)
