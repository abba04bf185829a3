import hashlib
import io
import tarfile
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from PIL import Image

from helpers.data import sources
from helpers.data.download import download, record, unpack

BODY = bytes(range(256)) * 8192  # 2 MiB: several reads
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        wanted = self.headers["Range"]
        server.asked.append(wanted)
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                return self.end_headers()
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.cut])  # the connection then closes

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.cut, server.ranges, server.asked = BODY, None, True, []
    server.url = f"http://127.0.0.1:{server.server_port}/archive.zip"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("checksum", [SHA256, hashlib.md5(BODY).hexdigest()])
def test_an_interrupted_download_continues_where_it_stopped(server, tmp_path, checksum):
    path = tmp_path / "data" / "archive.zip"
    server.cut = 1_500_000
    with pytest.raises(ConnectionError, match="stopped at 1500000 of 2097152 bytes") as error:
        download(server.url, path, checksum)
    assert server.url in str(error.value) and str(path) in str(error.value)
    assert not path.exists()
    server.cut = None
    download(server.url, path, checksum)
    assert server.asked == [None, "bytes=1500000-"]
    assert path.read_bytes() == BODY
    assert [entry.name for entry in path.parent.iterdir()] == ["archive.zip"]
    download(server.url, path, checksum)  # verified again, not fetched again
    assert len(server.asked) == 2


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(b"x" * 1000)
    server.ranges = False
    download(server.url, tmp_path / "archive.zip", SHA256)
    assert (tmp_path / "archive.zip").read_bytes() == BODY


def test_a_complete_part_is_only_verified_and_one_too_long_is_fetched_anew(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(BODY)
    download(server.url, tmp_path / "archive.zip", SHA256)
    assert server.asked == [f"bytes={len(BODY)}-"]
    (tmp_path / "again.zip.part").write_bytes(BODY + b"more")
    download(server.url, tmp_path / "again.zip", SHA256)
    assert (tmp_path / "again.zip").read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing_that_looks_finished(server, tmp_path):
    path = tmp_path / "archive.zip"
    with pytest.raises(ValueError, match=f"{SHA256}, not {'0' * 64}"):
        download(server.url, path, "0" * 64)
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive.zip.corrupt"]
    download(server.url, path, SHA256)
    assert path.read_bytes() == BODY


def test_an_unpublished_checksum_is_recorded_once_the_content_proved_good(server, tmp_path):
    path = tmp_path / "archive.zip"
    download(server.url, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive.zip"]
    record(path)
    assert (tmp_path / "archive.zip.sha256").read_text() == f"{SHA256}  archive.zip\n"
    path.write_bytes(BODY[:-1])
    with pytest.raises(ValueError, match="corrupt"):
        download(server.url, path)
    server.body = BODY + b"changed"
    with pytest.raises(ValueError, match=SHA256):
        download(server.url, path)
    server.body = BODY
    download(server.url, path)
    (tmp_path / "archive.zip.sha256").write_bytes(b"\xff\xfe")  # a damaged record is none
    download(server.url, path)
    record(path)
    assert SHA256 in (tmp_path / "archive.zip.sha256").read_text()


def test_without_network_one_sentence_says_where_to_put_the_file(server, tmp_path):
    with pytest.raises(ConnectionError, match="by hand") as error:
        download("http://127.0.0.1:9/archive.zip", tmp_path / "archive.zip")
    assert "http://127.0.0.1:9/archive.zip" in str(error.value)
    assert str(tmp_path / "archive.zip") in str(error.value)
    (tmp_path / "archive.zip").write_bytes(BODY)
    download("http://127.0.0.1:9/archive.zip", tmp_path / "archive.zip", SHA256)


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as pack:
        for name, content in members.items():
            pack.writestr(name, content)
    return path


def make_tar(path, members, **attributes):
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as pack:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            pack.addfile(info, io.BytesIO(content))
    return path


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


GOOD = {"set/a/1.txt": b"one" * 9999, "set/grün/2.txt": b"two", "__MACOSX/set/._1.txt": b"junk"}
FILES = {"set/a/1.txt": b"one" * 9999, "set/grün/2.txt": b"two"}


@pytest.mark.parametrize(
    ("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tgz"), (make_tar, "a.tar")]
)
def test_unpack_beside_what_is_there(tmp_path, make, name):
    archive = make(tmp_path / name, GOOD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.txt").write_bytes(b"mine")
    unpack(archive, tmp_path / "out", least=2)
    assert tree(tmp_path / "out") == FILES | {"train.txt": b"mine"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [name, "out"]


def test_an_archive_in_the_archive_is_unpacked_in_its_place(tmp_path):
    inner = make_tar(tmp_path / "images.tar.gz", {"images/1.txt": b"one"}).read_bytes()
    outer = make_zip(tmp_path / "a.zip", {"set/images.tar.gz": inner, "set/b.txt": b"b"})
    unpack(outer, tmp_path / "out", inner="set/images.tar.gz")
    assert tree(tmp_path / "out") == {"set/images/1.txt": b"one", "set/b.txt": b"b"}


def test_members_outside_the_folder_and_links_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    for number, name in enumerate(["../evil.txt", "set/../../evil.txt", f"{tmp_path}/evil.txt"]):
        for make, suffix in ((make_zip, "zip"), (make_tar, "tgz")):
            archive = make(tmp_path / "in" / f"{number}.{suffix}", {"ok.txt": b"1", name: b"2"})
            with pytest.raises(ValueError, match=r"evil\.txt' is a link or would lie outside"):
                unpack(archive, tmp_path / "out")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        archive = make_tar(tmp_path / "in" / "l.tar", {"x": b""}, type=kind, linkname="/etc/hosts")
        with pytest.raises(ValueError, match="'x' is a link"):
            unpack(archive, tmp_path / "out")
    link = zipfile.ZipInfo("x")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "in" / "l.zip", "w") as pack:
        pack.writestr(link, "/etc/hosts")
    with pytest.raises(ValueError, match="'x' is a link"):
        unpack(tmp_path / "in" / "l.zip", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tgz"), (make_tar, "a.tar")]
)
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_an_archive_cut_short_unpacks_nothing(tmp_path, make, name, share):
    archive = make(tmp_path / name, GOOD)
    whole = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut or corrupt") as error:
        unpack(archive, tmp_path / "out", least=2)
    assert str(error.value).count("\n") == 0 and ":)" not in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{name}.corrupt"]


def test_a_flipped_byte_is_noticed(tmp_path):
    for make, name in ((make_zip, "a.zip"), (make_tar, "a.tgz")):
        archive = make(tmp_path / name, {"set/1.txt": bytes(5000)})
        content = bytearray(archive.read_bytes())
        content[content.find(b"set/1.txt") + 50 if name == "a.zip" else 40] ^= 0xFF
        archive.write_bytes(content)
        with pytest.raises(ValueError, match="cut or corrupt"):
            unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_corrupt_archive_is_closed_before_it_is_renamed(tmp_path, monkeypatch):
    """Windows renames no file that is open."""
    archive = make_zip(tmp_path / "a.zip", {"set/1.txt": bytes(5000)})
    archive.write_bytes(archive.read_bytes().replace(bytes(5000), bytes(4999) + b"1"))
    opened = []
    replace = Path.replace

    def look(path, target):
        opened.append([Path(file.path).name for file in psutil.Process().open_files()])
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    with pytest.raises(ValueError, match="cut or corrupt"):
        unpack(archive, tmp_path / "out")
    assert len(opened) == 1 and "a.zip" not in opened[0]


def test_too_few_files_are_not_accepted(tmp_path):
    with pytest.raises(ValueError, match="holds 2 files, not 3"):
        unpack(make_zip(tmp_path / "a.zip", GOOD), tmp_path / "out", least=3)
    assert not (tmp_path / "out").exists()


def test_an_archive_without_the_folder_that_is_wanted_is_not_accepted(tmp_path):
    with pytest.raises(ValueError, match="holds no folder b"):
        unpack(make_zip(tmp_path / "a.zip", GOOD), tmp_path / "out", holds="b")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_unpacked_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.data.download.MOST_OF_ANY", 1_000_000)
    strange = make_zip(tmp_path / "strange.zip", {"a.txt": b"1" * 100})
    content = bytearray(strange.read_bytes())
    central = content.rfind(b"PK\x01\x02")
    for place, value in ((6, 1), (central + 8, 1)):  # the flag of an encrypted member
        content[place] |= value
    (tmp_path / "encrypted.zip").write_bytes(content)
    content = bytearray(strange.read_bytes())
    for place in (8, central + 10):
        content[place] = 97  # no known method
    (tmp_path / "method.zip").write_bytes(content)
    make_zip(tmp_path / "long.zip", {"x" * 300: b"1"})
    make_tar(tmp_path / "both.tar", {"a": b"1", "a/b": b"2"})
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("zeros", bytes(2_000_000))
    make_zip(tmp_path / "way.zip", {"in/the/way.txt": b"1"})
    (tmp_path / "out" / "in").mkdir(parents=True)
    words = {"encrypted": "encrypted", "method": "not supported", "long": "too long",
             "both": "cannot be unpacked", "bomb": "100 times its size",
             "way": "is in the way"}  # fmt: skip
    before = sorted(tmp_path.iterdir())
    for name, word in words.items():
        (archive,) = tmp_path.glob(f"{name}.*")
        with pytest.raises(ValueError, match=word) as error:
            unpack(archive, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == before and tree(tmp_path / "out") == {}
    with pytest.raises(ValueError, match="holds no set/images.tar.gz"):
        unpack(strange, tmp_path / "out", inner="set/images.tar.gz")


def test_processes_that_want_the_same_data_set_fetch_it_once(server, tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setattr(sources, "DATA", data)
    monkeypatch.setattr(sources, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.delenv("DATA_ROOT", raising=False)
    entry = {"url": server.url, "checksum": None, "files": 80}
    monkeypatch.setitem(sources.DOWNLOADS, "nature_12k", entry)
    server.body = b"<html>an error page</html>"
    with pytest.raises(ValueError, match="cut or corrupt"):
        sources.find("nature_12k")
    names = [f"inaturalist_12K/{s}/{c}/{i}.jpg" for s in ("train", "val") for c in range(20)
             for i in range(2)]  # fmt: skip
    server.body = make_zip(tmp_path / "o.zip", dict.fromkeys(names, b"picture")).read_bytes()
    server.asked.clear()
    (data / ".nature_12k.1.unfinished" / "of the dead").mkdir(parents=True)
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        found = list(pool.map(sources.find, ["nature_12k"] * 4))
    for source in found:
        assert (len(source.classes), len(source.train), len(source.test)) == (20, 40, 40)
    assert server.asked == [None]
    assert {path.name for path in data.iterdir()} == {
        "nature_12k", "archive.zip", "archive.zip.sha256", "archive.zip.corrupt",
        ".nature_12k.lock",
    }  # fmt: skip


def test_a_data_set_is_downloaded_unpacked_and_then_found(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DATA", tmp_path / "data")
    monkeypatch.setattr(sources, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.delenv("DATA_ROOT", raising=False)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "JPEG")
    names = [f"101_ObjectCategories/{c}/image_{i:04}.jpg" for c in ("ant", "emu") for i in range(9)]
    inner = make_tar(tmp_path / "i.tar.gz", dict.fromkeys(names, picture.getvalue()))
    outer = {"caltech-101/101_ObjectCategories.tar.gz": inner.read_bytes(), "__MACOSX/x": b""}
    server.body = make_zip(tmp_path / "o.zip", outer).read_bytes()
    entry = sources.DOWNLOADS["caltech101"] | {
        "url": server.url,
        "checksum": hashlib.md5(server.body).hexdigest(),
        "files": 18,
    }
    monkeypatch.setitem(sources.DOWNLOADS, "caltech101", entry)
    server.cut = 100
    with pytest.raises(ConnectionError):
        sources.find("caltech101")
    server.cut = None
    source = sources.find("caltech101")
    assert source.folder == tmp_path / "data/caltech101/caltech-101/101_ObjectCategories"
    assert len(source.train + source.test) == 18
    assert sources.find("caltech101") == source
    assert server.asked == [None, "bytes=100-"]
    monkeypatch.setitem(sources.DOWNLOADS, "nature_12k", entry)
    with pytest.raises(ValueError, match="holds no folder inaturalist_12K"):
        sources.find("nature_12k")
    assert not (tmp_path / "data" / "nature_12k").exists()
