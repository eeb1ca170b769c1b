"""Packages that only some settings need: bitsandbytes for 8 and 4 bits, DeepSpeed for several processes.

Libraries import them wherever they are installed, whatever the settings say: peft imports bitsandbytes, and
accelerate DeepSpeed. That takes seconds, and on processors with AVX512-BF16 bitsandbytes prints a warning
about a kernel. So a command runs in `only_needed`, where Python answers that they are not installed, until
`check_installed` is called because the settings ask for one. What a package prints while it is imported is
dropped; an error of its import is raised as always.
"""

import contextlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from rlhf.environment import uses_deepspeed
from rlhf.errors import UserError

Package = Literal["bitsandbytes", "deepspeed"]

_REMEMBERED_BY: dict[Package, tuple[tuple[str, str], ...]] = {
    "bitsandbytes": (
        ("peft.import_utils", "is_bnb_available"),
        ("peft.import_utils", "is_bnb_4bit_available"),
        ("transformers.utils.import_utils", "is_bitsandbytes_available"),
    ),
    "deepspeed": (),
}
"""Functions of libraries that look for a package once, and remember the answer (`functools.lru_cache`)."""


@contextlib.contextmanager
def only_needed() -> Iterator[None]:
    """Inside the block an optional package is as good as not installed until something needs it.

    A process that was launched under DeepSpeed needs that one from the beginning.
    """
    hidden: list[Package] = [name for name in _REMEMBERED_BY if name not in sys.modules]
    if uses_deepspeed() and "deepspeed" in hidden:
        hidden.remove("deepspeed")
    for name in hidden:
        _hide(name)
    try:
        yield
    finally:
        for name in hidden:
            _reveal(name)


def check_installed(package: Package, *, where: str, otherwise: str) -> None:
    """Let libraries find a package that the settings ask for.

    `where` is the setting that asks for it, `otherwise` says how to do without it.

    Raises:
        UserError: it is not installed.
    """
    _reveal(package)
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"this needs {package}, which is not installed",
            where=where,
            fix=f"python -m pip install {package}, in the environment that runs this (constraints.txt of the "
            f"repository has the version that was tested); or {otherwise}.",
        )


def load(package: Package) -> None:
    """Import a package, if it is installed, and drop what it prints."""
    _reveal(package)
    if package not in sys.modules and importlib.util.find_spec(package) is not None:
        with silent():
            importlib.import_module(package)


@contextlib.contextmanager
def as_installed() -> Iterator[None]:
    """Inside the block everything is found that is installed: for code of the user's."""
    hidden = [name for name in _REMEMBERED_BY if _is_hidden(name)]
    for name in hidden:
        _reveal(name)
    try:
        yield
    finally:
        for name in hidden:
            if name not in sys.modules:
                _hide(name)


def _reveal(package: Package) -> None:
    if _is_hidden(package):
        del sys.modules[package]
        _forget_answers(package)


def _is_hidden(package: Package) -> bool:
    return package in sys.modules and sys.modules[package] is None


def _hide(package: Package) -> None:
    # Python's own way to say so: an import of it fails, and `importlib.util.find_spec` finds nothing.
    sys.modules[package] = None  # type: ignore[assignment]
    _forget_answers(package)


def _forget_answers(package: Package) -> None:
    for module, function in _REMEMBERED_BY[package]:
        if module in sys.modules:
            getattr(sys.modules[module], function).cache_clear()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drop what is printed, logged or warned of inside the block."""
    streams = _Muted(sys.stdout), _Muted(sys.stderr)
    logging_was_disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging_was_disabled)
        for stream in streams:
            stream.is_muted = False


class _Muted(io.TextIOBase):
    """A stream in whose place nothing is written for a while.

    Loggers that are made meanwhile keep it, so it has to work like the stream itself afterwards.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.is_muted = True

    def write(self, text: str) -> int:
        return len(text) if self.is_muted else int(self._stream.write(text))

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        return bool(self._stream.isatty())
