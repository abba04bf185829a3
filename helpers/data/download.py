"""Download a file and unpack an archive, each completely or not at all, and safely."""

import gzip
import hashlib
import http.client
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn

from tqdm.auto import tqdm


def download(url: str, path: Path, checksum: str | None = None) -> None:
    """Download a file, continuing where an earlier attempt stopped, and verify it.

    `checksum` is an md5 or sha256 in hexadecimal; without one, the sha256 is recorded beside the
    file at the first download and compared ever after. A file that already lies at `path` is only
    verified. Raises ConnectionError without network, ValueError for a wrong checksum (the file
    is then renamed to NAME.corrupt).
    """
    part = path if path.is_file() else path.with_name(path.name + ".part")
    if part != path:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _transfer(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"{url} could not be downloaded ({error}): run this again to "
                f"continue, or put the file at {path} by hand"
            ) from None
    record = path.with_name(path.name + ".sha256")
    if checksum is None and record.is_file():
        checksum = record.read_text(encoding="utf-8").split()[0]
    found = _digest(part, "md5" if checksum and len(checksum) == 32 else "sha256")
    if checksum is None:
        record.write_text(f"{found}  {path.name}\n", encoding="utf-8")
    elif found != checksum:
        _set_aside(path, part, f"its checksum is {found}, not {checksum}")
    part.replace(path)


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


def _set_aside(path: Path, part: Path, reason: str) -> NoReturn:
    """Rename a bad file so that the next attempt starts afresh, and say so."""
    corrupt = path.with_name(path.name + ".corrupt")
    part.replace(corrupt)
    raise ValueError(
        f"{path.name} is cut or corrupt ({reason}): it is now called {corrupt}, "
        f"run this again to download it anew"
    )


def unpack(archive: Path, folder: Path, least: int = 0, inner: str | None = None) -> None:
    """Unpack a zip or tar archive into a folder, completely or not at all.

    `inner` names an archive inside it that is unpacked in its place; `least` is the smallest
    number of files to accept. Raises ValueError, for a cut or corrupt archive (which is renamed
    to NAME.corrupt) and for one with links or with members outside the folder.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _extract(archive, temporary)
        if inner:
            _extract(temporary / inner, (temporary / inner).parent)
            (temporary / inner).unlink()
        count = sum(path.is_file() for path in temporary.rglob("*"))
        if count < least:
            _set_aside(archive, archive, f"it holds {count} files, not {least}")
        folder.mkdir(parents=True, exist_ok=True)
        for entry in temporary.iterdir():
            entry.replace(folder / entry.name)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        _set_aside(archive, archive, str(error).partition(":\n")[0])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    """Write the files of an archive; links and members outside `folder` raise ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind, open_member in tqdm(
        _members(archive), desc=f"Unpacking {archive.name}", unit=" files", disable=None
    ):
        target = (folder / name).resolve()
        if kind == "other" or not target.is_relative_to(folder.resolve()):
            raise ValueError(
                f"{archive} is not safe to unpack: '{name}' is a link or would lie "
                f"outside its folder"
            )
        if kind == "file" and "__MACOSX" not in PurePosixPath(name).parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as member, target.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)


def _members(archive: Path) -> Iterator[tuple[str, str, Callable]]:
    """Yield name, kind (file, folder, other) and a function that opens it, of each member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                link = stat.S_ISLNK(info.external_attr >> 16)
                kind = "other" if link else "folder" if info.is_dir() else "file"
                yield info.filename, kind, partial(pack.open, info)
    else:
        with tarfile.open(archive) as pack:
            for info in pack:
                kind = "file" if info.isfile() else "folder" if info.isdir() else "other"
                yield info.name, kind, partial(pack.extractfile, info)
