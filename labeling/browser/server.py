"""`serve`: who has a labeler's token gets that labeler's screen, and nothing else.

A page and its socket are refused without a cookie that holds a valid token; a socket also if another site's
page opens it. The token is looked up again every few seconds, so a new one ends the old one's sessions. What
runs, for which project and for whom, is decided here; a browser only sends keys and sizes to it.
Nothing is loaded from anywhere else.
"""

import asyncio
import html
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import textual_serve
from aiohttp import WSCloseCode, WSMsgType, web

from labeling.browser.process import RankProcess
from labeling.store.database import StoreError
from labeling.store.project import Project

COOKIE = "triptych_token"
MAX_SESSIONS = 4
"""Screens that one labeler may have open."""
MAX_MESSAGE_BYTES = 64 * 1024
RECHECK_SECONDS = 5.0
REFUSAL_SECONDS = 0.5
UNAVAILABLE = "The database cannot be used just now. What was submitted is safe; try again in a while."
SIZES = range(1, 501)

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src 'self' data:; connect-src 'self' {socket}; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class Server:
    """Serves one project."""

    def __init__(self, project: Project, location: str, public_url: str | None = None) -> None:
        self._project, self._location = project, location
        self._public_url = public_url.rstrip("/") if public_url else None
        self._open: Counter[str] = Counter()
        self._sockets: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_MESSAGE_BYTES, middlewares=[_answered])
        app.router.add_get("/", self._page)
        app.router.add_post("/enter", self._enter)
        app.router.add_get("/ws", self._socket)
        app.router.add_get("/page/{name}", _own_file)
        app.router.add_static("/static", Path(textual_serve.__file__).parent / "static")
        app.on_response_prepare.append(self._secure)
        app.on_shutdown.append(self._close_all)
        return app

    async def _labeler(self, request: web.Request) -> str | None:
        return await self._labeler_of(request.cookies.get(COOKIE, ""))

    async def _labeler_of(self, token: str) -> str | None:
        if not token:
            return None
        return await asyncio.to_thread(self._project.labeler_of, token)

    async def _page(self, request: web.Request) -> web.Response:
        labeler = await self._labeler(request)
        if labeler is None:
            return _html("enter.html", message="")
        return _html("screen.html", labeler=labeler, socket=self._socket_url(request))

    async def _enter(self, request: web.Request) -> web.Response:
        if not self._same_origin(request):
            raise web.HTTPForbidden(text="another site's page may not enter here")
        token = (await request.post()).get("token", "")
        token = token.strip() if isinstance(token, str) else ""
        if await self._labeler_of(token) is None:
            await asyncio.sleep(REFUSAL_SECONDS)
            return _html("enter.html", status=403, message="This token is not valid. Ask for a new one.")
        answer = web.Response(status=303, headers={"Location": "/"})
        secure = self._origin(request).startswith("https:")
        answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict", secure=secure, path="/")
        return answer

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        labeler = await self._labeler(request)
        if labeler is None:
            raise web.HTTPForbidden(text="no valid token")
        if not self._same_origin(request):
            raise web.HTTPForbidden(text="another site's page may not open a session here")
        if self._open[labeler] >= MAX_SESSIONS:
            raise web.HTTPTooManyRequests(text=f"{MAX_SESSIONS} screens are open; close one")
        socket = web.WebSocketResponse(heartbeat=15, max_msg_size=MAX_MESSAGE_BYTES)
        self._open[labeler] += 1
        self._sockets.add(socket)
        try:
            await socket.prepare(request)
            await self._run(request, socket, labeler)
        finally:
            self._open[labeler] -= 1
            self._sockets.discard(socket)
        return socket

    async def _run(self, request: web.Request, socket: web.WebSocketResponse, labeler: str) -> None:
        process = RankProcess(self._location, labeler, socket)
        await process.start(_size(request.query.get("width"), 80), _size(request.query.get("height"), 24))
        check = asyncio.create_task(self._recheck(socket, request.cookies[COOKIE], labeler))
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT and not await _pass_on(message.data, process, socket):
                    await socket.close(code=WSCloseCode.POLICY_VIOLATION)
        finally:
            check.cancel()
            await asyncio.shield(process.end())

    async def _recheck(self, socket: web.WebSocketResponse, token: str, labeler: str) -> None:
        while await self._still_valid(token, labeler):
            await asyncio.sleep(RECHECK_SECONDS)
        await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"the token is no longer valid")

    async def _still_valid(self, token: str, labeler: str) -> bool:
        try:
            return await self._labeler_of(token) == labeler
        except StoreError as error:  # nobody can enter anything meanwhile; it is looked up again
            _say(error)
            return True

    def _origin(self, request: web.Request) -> str:
        return self._public_url or f"{request.scheme}://{request.host}"

    def _same_origin(self, request: web.Request) -> bool:
        return request.headers.get("Origin") in (self._origin(request), f"{request.scheme}://{request.host}")

    def _socket_url(self, request: web.Request) -> str:
        return "ws" + self._origin(request).removeprefix("http") + "/ws"

    async def _secure(self, request: web.Request, response: web.StreamResponse) -> None:
        # The socket is named in addition to 'self', which in some browsers does not cover it.
        safe = html.escape(self._socket_url(request)).replace(";", "").replace(" ", "")
        response.headers.update(
            {
                "Content-Security-Policy": _CSP.format(socket=safe),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "same-origin",
                "Cache-Control": "no-store",
            }
        )

    async def _close_all(self, _: web.Application) -> None:
        for socket in set(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)


@web.middleware
async def _answered(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Say that the database refuses; why is for whoever runs the server, and not for whoever asks it."""
    try:
        return await handler(request)
    except StoreError as error:
        _say(error)
        raise web.HTTPServiceUnavailable(text=UNAVAILABLE) from None


def _say(error: StoreError) -> None:
    print(f"serve: {error}", file=sys.stderr, flush=True)


async def _pass_on(text: str, process: RankProcess, socket: web.WebSocketResponse) -> bool:
    """Do what a browser's message says; False if it is none."""
    try:
        kind, *rest = json.loads(text)
    except (ValueError, TypeError):
        return False
    match kind, rest:
        case "stdin", [str(typed)]:
            await process.send_bytes(typed.encode("utf-8", "replace"))
        case "resize", [{"width": width, "height": height}]:
            await process.set_terminal_size(_size(width, 80), _size(height, 24))
        case "ping", [data]:
            await socket.send_json(["pong", data])
        case "blur", _:
            await process.blur()
        case "focus", _:
            await process.focus()
        case _:
            return False
    return True


def _size(value: Any, default: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return max(SIZES[0], min(number, SIZES[-1]))


def _html(name: str, *, status: int = 200, **values: str) -> web.Response:
    text = _file(name).decode()
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", html.escape(value))
    return web.Response(text=text, status=status, content_type="text/html")


async def _own_file(request: web.Request) -> web.Response:
    kinds = {"page.css": "text/css", "enter.js": "text/javascript", "screen.js": "text/javascript"}
    name = request.match_info["name"]
    if name not in kinds:
        raise web.HTTPNotFound
    return web.Response(body=_file(name), content_type=kinds[name])


def _file(name: str) -> bytes:
    return resources.files("labeling.browser").joinpath(name).read_bytes()
