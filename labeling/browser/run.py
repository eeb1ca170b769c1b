"""Running the server until it is told to stop."""

import argparse
import asyncio
import ipaddress
import shlex
import signal
import socket
from urllib.parse import urlsplit

from aiohttp import web

from labeling.browser.server import Server
from labeling.store.project import Project
from rlhf.errors import UserError


def serve(project: Project, arguments: argparse.Namespace) -> None:
    """Serve `project` as the options of `serve` say, until Ctrl-C.

    Raises:
        UserError: the address cannot be listened on, or the public URL is none.
    """
    _check_url(arguments.public_url)
    asyncio.run(_serve(project, arguments))


async def _serve(project: Project, arguments: argparse.Namespace) -> None:
    server = Server(project, arguments.project, arguments.public_url)
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        site = web.TCPSite(runner, arguments.host, arguments.port, shutdown_timeout=10.0)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen on {arguments.host}, port {arguments.port} ({error})",
                where="serve",
                fix="Choose another --host or --port.",
            ) from None
        host, port = runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serve: {arguments.public_url or f'http://{shown}:{port}'} (Ctrl-C stops)", flush=True)
        token = f"python -m labeling token --project {shlex.quote(project.where)} --labeler NAME"
        print(f"serve: each labeler enters with a token: {token}", flush=True)
        if not _is_loopback(arguments.host) and not (arguments.public_url or "").startswith("https:"):
            print("serve: tokens and texts travel unencrypted: put a proxy with TLS before it", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


def _check_url(url: str | None) -> None:
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise UserError(
            f"{url} is no public URL",
            where="--public-url",
            fix="Give scheme and host: https://labels.example.org",
        )
