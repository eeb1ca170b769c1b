"""A real PostgreSQL server for tests: its own data folder, a socket in it, no network, gone at the end."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

REQUIRED = "TRIPTYCH_TESTS_REQUIRE"
"""Names of what must be there, separated by spaces: what is missing then is a failure, not a skip."""


def missing(what: str, how: str) -> None:
    """Skip the test, or let it fail where `what` is required."""
    text = f"{what} is not installed: {how}"
    if what in os.environ.get(REQUIRED, "").split():
        pytest.fail(text)
    pytest.skip(text)


class Server:
    """A running server; every test makes a database of its own in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._url("postgres", "postgresql"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self._url(name, "postgresql")

    def _url(self, database: str, scheme: str) -> str:
        return f"{scheme}://tester@/{database}?host={self._folder}"


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Start a server as an unprivileged user, and stop it."""
    binaries = _binaries()
    if binaries is None:
        missing("postgresql", "apt-get install postgresql")
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="triptych-pg-", dir="/tmp"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user)
    try:
        _run(binaries / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "-N", user=user)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c max_connections=60"
        control = (binaries / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w")
        _run(*control, "-o", options, "start", user=user)
        try:
            yield Server(folder)
        finally:
            _run(*control, "-m", "immediate", "stop", user=user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(*command: object, user: str | None) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # a pipe would be held open by the server itself
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, command


def _binaries() -> Path | None:
    """The folder of initdb and pg_ctl, the newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: -float(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


def _unprivileged() -> str | None:
    """The server refuses to run as root: whom to run it as instead."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
