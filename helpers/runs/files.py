"""Files that are whole or absent: written at once, made by one process, checked when read.

What a killed process left of a data set or in a run's folder is removed by the next one.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from helpers.runs.text import abridge, for_terminal, reason

UNFINISHED = re.compile(r"\.(.+)\.(\d+)(?:-\d+)?\.unfinished")  # of what, and by which process
CHECKSUM = "checksum"  # the key of a JSON file's own
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


class DamagedFile(ValueError):
    """A file that is cut, changed or of another kind; the message names it and the way out."""


class CannotWrite(OSError):
    """A file that could not be written; what was there before is unchanged."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when all is written, also when killed.

    Raises CannotWrite where the disk is full or read-only.
    """
    temporary = _unfinished(path)
    with naming_the_disk(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, also when killed on the way."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to work in, removed at the end.

    Hold the lock of `folder`. What processes that were killed left there is removed.
    """
    temporary = _unfinished(folder)
    with naming_the_disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for entry in folder.parent.iterdir():
            found = UNFINISHED.fullmatch(entry.name)
            if found and found[1] == folder.name[:200]:
                shutil.rmtree(entry, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when nothing failed.

    Hold the lock of `folder`.
    """
    with own_folder(folder) as temporary:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)


def _unfinished(path: Path) -> Path:
    owner = f"{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f".{path.name[:200]}.{owner}.unfinished")


def remove_leftovers(folder: Path) -> None:
    """Remove the files that processes which have ended left unfinished in a folder."""
    for entry in folder.glob(".*.unfinished"):
        found = UNFINISHED.fullmatch(entry.name)
        if found and entry.is_file() and not psutil.pid_exists(int(found[2])):
            with suppress(OSError):
                entry.unlink()


@contextmanager
def naming_the_disk(path: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into one sentence, CannotWrite."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises its own, after the system's
        cause: BaseException | None = error
        while cause is not None and not getattr(cause, "errno", None):
            cause = cause.__context__
        number = getattr(cause, "errno", None)
        if isinstance(error, CannotWrite) or number not in FULL | FORBIDDEN:
            raise
        why = "is full" if number in FULL else f"does not allow it ({os.strerror(number)})"
        way = "free some room there" if number in FULL else "choose another folder"
        raise CannotWrite(
            f"{abridge(str(path), 150)} cannot be written, because its disk {why}: {way} and start "
            f"again; what was there before is unchanged"
        ) from None


@contextmanager
def lock(path: Path, work: str) -> Iterator[None]:
    """Let one process at a time do some work on a file or folder; the others wait, and say so.

    The system lets go of the lock when its process ends, however it ends.
    """
    with naming_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name[:200]}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process, which is {work}", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def reserve(path: Path, size: int) -> None:
    """Take room for a file on the disk now; a full disk would end a later write by a signal."""
    # Without such a call in the file system, the C library refuses files that are appended to.
    with naming_the_disk(path), path.open("r+b" if path.exists() else "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(path.parent).free < size:  # macOS, Windows
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_json(path: Path, content: dict) -> None:
    """Write an object as JSON, with a checksum that `read_json` compares."""
    text = json.dumps({**content, CHECKSUM: _checksum(content)}, indent=1)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path, kind: Any, way_out: str) -> Any:
    """Read a JSON file and check its content against a type, and its checksum where it has one.

    Raises FileNotFoundError, and DamagedFile, whose one sentence ends with `way_out`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
        if checksum is not None and checksum != _checksum(content):
            raise ValueError(f"changed since it was written; if on purpose, remove {CHECKSUM}")
        return checked(content, kind)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise damaged(path, reason(error), way_out) from None


def checked(content: Any, kind: Any) -> Any:
    """Check plain values against a type; raises ValueError with the place of the first mistake."""
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place} {first['msg']}".strip()) from None


def readable_json(path: Path, kind: Any) -> Any:
    """Read a JSON file that is made again where it is absent or damaged: then None."""
    try:
        return read_json(path, kind, "it is made again")
    except (FileNotFoundError, DamagedFile):
        return None


def _checksum(content: dict) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def damaged(path: Path, trouble: str, way_out: str) -> DamagedFile:
    """Return the error that names a file, its trouble and the way out, in one sentence."""
    return DamagedFile(
        f"{abridge(for_terminal(path), 110)} is damaged ({abridge(for_terminal(trouble), 80)}): "
        f"{way_out}"
    )
