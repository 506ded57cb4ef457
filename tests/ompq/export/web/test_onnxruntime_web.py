"""What runs the network in browsers is fetched once, whole, or not at all."""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.export.web.onnxruntime_web import ONNXRUNTIME_WEB, NpmPackage, fetch_package

CONTENTS = {"dist/run.mjs": b"export {}", "dist/run.wasm": bytes(range(256)) * 40}
PACKAGE = NpmPackage(
    "made-up", "1.2.3", {path: hashlib.sha256(text).hexdigest() for path, text in CONTENTS.items()}
)


@dataclass
class Npm:
    """A stand-in for npm: it counts its calls, and does what it is told."""

    folder: Path
    cache: Path

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def do(self, commands: str) -> None:
        """Let it run commands of a shell, after noting its arguments and where it is."""
        program = self.folder / "npm"
        log = shlex.quote(str(self.folder / "calls"))
        # Its commands are where they always are: the path holds nothing else.
        program.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$*" >> {log}\n{commands}\n')
        program.chmod(0o755)

    def give(self, contents: dict[str, bytes]) -> None:
        """Let it give an archive of these files."""
        archive = self.folder / "archive"
        with tarfile.open(archive, "w:gz") as opened:
            for path, content in contents.items():
                entry = tarfile.TarInfo(f"package/{path}")
                entry.size = len(content)
                opened.addfile(entry, io.BytesIO(content))
        self.do(f"cp {shlex.quote(str(archive))} made-up-1.2.3.tgz")


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Npm:
    folder = tmp_path / "programs here"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Npm(folder, tmp_path / "cache" / "ompq")


def test_files_are_fetched_once_into_the_cache_of_the_user(npm: Npm) -> None:
    npm.give(CONTENTS)
    told: list[str] = []
    for _ in range(2):
        places = fetch_package(PACKAGE, say=told.append)
        assert {path: place.read_bytes() for path, place in places.items()} == CONTENTS
        assert all(npm.cache in place.parents for place in places.values())
    assert npm.calls == ["pack made-up@1.2.3"]
    assert len(told) == 1 and "made-up@1.2.3" in told[0] and str(npm.cache) in told[0]


def test_what_was_fetched_needs_no_npm_any_more(npm: Npm) -> None:
    npm.give(CONTENTS)
    fetch_package(PACKAGE, say=str)
    (npm.folder / "npm").unlink()
    fetch_package(PACKAGE, say=str)


def test_a_damaged_file_of_the_cache_is_fetched_anew(npm: Npm) -> None:
    npm.give(CONTENTS)
    place = fetch_package(PACKAGE, say=str)["dist/run.wasm"]
    place.write_bytes(place.read_bytes()[:-1])
    fetch_package(PACKAGE, say=str)
    assert place.read_bytes() == CONTENTS["dist/run.wasm"]
    assert len(npm.calls) == 2


def refuse(npm: Npm) -> str:
    """What the user is told; the cache holds nothing then."""
    with pytest.raises(OmpqError, match=r"needs npm, once, to fetch made-up@1\.2\.3") as raised:
        fetch_package(PACKAGE, say=str)
    assert not npm.cache.exists() or not list(npm.cache.rglob("*.*m*"))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_without_npm_it_is_said_what_to_install(npm: Npm) -> None:
    assert "install Node.js" in refuse(npm)


@pytest.mark.parametrize("speech", ["npm error", "npm ERR!"])
def test_without_a_network_the_words_of_npm_are_told(speech: str, npm: Npm) -> None:
    npm.do(f"echo 'npm notice new version' >&2; echo '{speech} code ENOTFOUND' >&2; exit 1")
    told = refuse(npm)
    assert "ENOTFOUND" in told and "network" in told and "notice" not in told


@pytest.mark.parametrize("commands", ["exit 0", "exit 1", "echo here > made-up-1.2.3.tgz; exit 1"])
def test_an_npm_that_gives_nothing_is_told(commands: str, npm: Npm) -> None:
    npm.do(commands)
    assert "no archive" in refuse(npm)


def test_other_bytes_than_were_published_are_refused(npm: Npm) -> None:
    npm.give({**CONTENTS, "dist/run.mjs": b"steal()"})
    assert "dist/run.mjs is not what was published" in refuse(npm)


def test_an_archive_without_its_files_is_refused(npm: Npm) -> None:
    npm.give({"dist/run.mjs": CONTENTS["dist/run.mjs"]})
    assert "run.wasm" in refuse(npm)


@pytest.mark.parametrize("cut", [0, 40, 120])
def test_a_damaged_archive_is_refused(cut: int, npm: Npm) -> None:
    npm.give(CONTENTS)
    archive = npm.folder / "archive"
    archive.write_bytes(archive.read_bytes()[:cut])
    assert "cannot be read" in refuse(npm)


def test_the_version_is_pinned_with_its_bytes() -> None:
    assert ONNXRUNTIME_WEB.title.count(".") == 2
    assert all(len(digest) == 64 for digest in ONNXRUNTIME_WEB.digests.values())
