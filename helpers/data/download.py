"""Download a file and unpack an archive, each completely or not at all, and safely."""

import gzip
import hashlib
import http.client
import lzma
import re
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn

from helpers.runs.files import CannotWrite, naming_the_disk, own_folder, write_atomically
from helpers.runs.progress import tqdm
from helpers.runs.text import abridge, for_terminal, reason

MOST_TIMES = 100  # an archive may grow by when unpacked; photographs hardly grow
MOST_OF_ANY = 100_000_000  # bytes that any archive may unpack to
CORRUPT = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
)


def download(url: str, path: Path, checksum: str | None = None) -> None:
    """Download a file, continuing where an earlier attempt stopped, and verify it.

    `checksum` is an md5 or sha256 in hexadecimal; without one, what `record` wrote at an earlier
    time is compared. A file that already lies at `path` is only verified. Hold a lock. Raises
    ConnectionError without network, ValueError for a wrong checksum (the file is then renamed to
    NAME.corrupt).
    """
    part = path if path.is_file() else path.with_name(path.name + ".part")
    if part != path:
        try:
            with naming_the_disk(part):
                path.parent.mkdir(parents=True, exist_ok=True)
                _transfer(url, part)
        except CannotWrite:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ConnectionError(
                f"{url} could not be downloaded ({reason(error, 80)}): run this again to "
                f"continue, or put the file at {path} by hand"
            ) from None
    checksum = checksum or _recorded(path)
    if checksum:
        found = _digest(part, "md5" if len(checksum) == 32 else "sha256")
        if found != checksum:
            _set_aside(path, part, f"its checksum is {found}, not {checksum}")
    part.replace(path)


def record(path: Path) -> None:
    """Write the checksum of a download that proved good beside it, to be compared ever after."""
    if not _recorded(path):
        line = f"{_digest(path, 'sha256')}  {path.name}\n"
        write_atomically(path.with_name(path.name + ".sha256"), line.encode())


def _recorded(path: Path) -> str | None:
    file = path.with_name(path.name + ".sha256")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.match(r"[0-9a-f]{64}\b", text)
    return found[0] if found else None


def _transfer(url: str, part: Path) -> None:
    """Fetch what `part` lacks of the file at `url`."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "five-blocks"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers["Content-Range"] == f"bytes */{start}":
            return  # nothing is lacking
        part.unlink()
        return _transfer(url, part)
    with response:
        if response.status != 206:  # the server sends the whole file
            start = 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        bar = tqdm(
            total=total,
            initial=start,
            desc=f"Downloading {part.stem}",
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with bar, part.open("ab" if start else "wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"stopped at {part.stat().st_size} of {total} bytes")


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _set_aside(path: Path, part: Path, trouble: str) -> NoReturn:
    """Rename a bad file so that the next attempt starts afresh, and say so."""
    corrupt = path.with_name(path.name + ".corrupt")
    part.replace(corrupt)
    raise ValueError(
        f"{path.name} is cut or corrupt ({trouble}): it is now called {corrupt}, "
        f"run this again to download it anew"
    )


def unpack(
    archive: Path, folder: Path, least: int = 0, inner: str | None = None, holds: str = ""
) -> None:
    """Unpack a zip or tar archive into a folder, completely or not at all.

    `inner` names an archive inside it that is unpacked in its place; `least` is the smallest
    number of files to accept, `holds` a folder that must be among them. Hold the lock of `folder`,
    which may exist and hold other things. Raises ValueError, for a cut or corrupt archive (which
    is renamed to NAME.corrupt) and for one with links, with members outside the folder, or that
    would fill the disk.
    """
    try:
        with own_folder(folder) as temporary:
            _extract(archive, temporary)
            if inner:
                if not (temporary / inner).is_file():
                    _set_aside(archive, archive, f"it holds no {inner}")
                _extract(temporary / inner, (temporary / inner).parent)
                (temporary / inner).unlink()
            count = sum(path.is_file() for path in temporary.rglob("*"))
            if count < least:
                _set_aside(archive, archive, f"it holds {count} files, not {least}")
            if holds and not any(path.is_dir() for path in temporary.rglob(holds)):
                _set_aside(archive, archive, f"it holds no folder {holds}")
            entries = sorted(temporary.iterdir(), key=Path.is_file)  # folders first
            for entry in entries:
                if (folder / entry.name).exists():
                    raise ValueError(
                        f"{folder / entry.name} is in the way of what {archive.name} holds: move "
                        f"it elsewhere and run this again"
                    )
            folder.mkdir(parents=True, exist_ok=True)
            for entry in entries:
                entry.replace(folder / entry.name)
    except CORRUPT as error:
        _set_aside(archive, archive, reason(error, 80).removesuffix(":"))
    except CannotWrite:
        raise
    except (RuntimeError, NotImplementedError, OSError) as error:  # encrypted, a name too long
        raise ValueError(
            f"{archive} cannot be unpacked ({reason(error, 100)}): unpack it by hand into {folder}"
        ) from None


def _extract(archive: Path, folder: Path) -> None:
    """Write the files of an archive; links and members outside `folder` raise ValueError."""
    room = max(MOST_OF_ANY, MOST_TIMES * archive.stat().st_size)
    with closing(_members(archive)) as members:  # Windows renames no file that is open
        for name, is_file, open_member in tqdm(
            members, desc=f"Unpacking {archive.name}", unit=" files", disable=None
        ):
            target = (folder / name).resolve()
            if not is_file or not target.is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{archive} is not safe to unpack: '{abridge(for_terminal(name), 100)}' is a "
                    f"link or would lie outside its folder"
                )
            if "__MACOSX" not in PurePosixPath(name).parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as member, target.open("wb") as file:
                    while chunk := member.read(1 << 20):
                        room -= len(chunk)
                        if room < 0:
                            raise ValueError(
                                f"{archive} is not safe to unpack: it grows to more than "
                                f"{MOST_TIMES} times its size"
                            )
                        file.write(chunk)


def _members(archive: Path) -> Iterator[tuple[str, bool, Callable]]:
    """Yield each member but folders: its name, whether it is a file, a function that opens it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                if not info.is_dir():
                    is_link = stat.S_ISLNK(info.external_attr >> 16)
                    yield info.filename, not is_link, partial(pack.open, info)
    else:
        with tarfile.open(archive) as pack:
            for info in pack:
                if not info.isdir():
                    yield info.name, info.isfile(), partial(pack.extractfile, info)
