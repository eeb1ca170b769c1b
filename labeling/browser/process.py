"""The process behind one page: `rank` with its screen on a pipe, started without a shell."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

LAST_SECONDS = 10.0
"""How long a process may take to store what it has."""


class RankProcess(AppService):
    """One labeler's program; of what it may ask of a browser, only to end is done."""

    def __init__(self, project: str, labeler: str, socket: web.WebSocketResponse) -> None:
        async def close() -> None:
            await socket.close()

        super().__init__(
            "rank",
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=close,
            download_manager=DownloadManager(),
        )
        self._arguments = ("-m", "labeling", "rank", f"--project={project}", f"--labeler={labeler}")

    async def end(self) -> None:
        """Let the program store what it has and end; end it if it does not."""
        try:
            await asyncio.wait_for(self.stop(), LAST_SECONDS)
        except TimeoutError:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()

    async def on_meta(self, data: bytes) -> None:
        if json.loads(data)["type"] == "exit":
            await self.remote_close()

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._build_environment(width=width, height=height),
        )
        assert process.stdin is not None
        self._process, self._stdin = process, process.stdin
        return process
