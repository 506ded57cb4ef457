"""ONNX Runtime for browsers: fetched by npm once, kept in the user's cache, known by its bytes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ompq.data.datasets.download import find_cache_folder
from ompq.errors import OmpqError
from ompq.files import atomic_path
from ompq.runtime import say

_TIMEOUT = 900
# What reading an archive raises that is cut off, or is none.
_UNREADABLE = (tarfile.TarError, OSError, EOFError, KeyError, zlib.error)


@dataclass(frozen=True)
class NpmPackage:
    """A version of a package of npm, and those of its files that are needed.

    Attributes:
        name: Name of the package.
        version: Its version.
        digests: Path of a file in the package → SHA-256 of its bytes, in hexadecimal.
    """

    name: str
    version: str
    digests: Mapping[str, str]

    @property
    def title(self) -> str:
        """Return name and version, as npm writes them."""
        return f"{self.name}@{self.version}"


ONNXRUNTIME_WEB = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    {
        "dist/ort.wasm.bundle.min.mjs": (
            "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"
        ),
        "dist/ort-wasm-simd-threaded.wasm": (
            "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
        ),
    },
)


def fetch_package(
    package: NpmPackage = ONNXRUNTIME_WEB, *, say: Callable[[str], None] = say
) -> dict[str, Path]:
    """Return files of a package, from the cache of this user, or from npm where they are not there.

    Args:
        package: Package, its version and files.
        say: Function that is told when something is fetched.

    Returns:
        Path of a file in the package → where it is on this machine.

    Raises:
        OmpqError: npm is not installed, or cannot fetch it.
    """
    folder = find_cache_folder() / f"{package.name}-{package.version}"
    places = {path: folder / Path(path).name for path in package.digests}
    if all(_is_whole(places[path], digest) for path, digest in package.digests.items()):
        return places
    npm = shutil.which("npm")
    if npm is None:
        raise OmpqError(_explain(package, "npm is not installed; install Node.js, which has it"))
    say(f"fetching {package.title} by npm, once; it is kept in {folder}")
    with tempfile.TemporaryDirectory() as room:
        contents = _read_files(package, _pack(package, npm, Path(room)))
    for path, content in contents.items():
        with atomic_path(places[path]) as temporary:
            temporary.write_bytes(content)
    return places


def _is_whole(file: Path, digest: str) -> bool:
    """Tell whether a file is there, every byte of it."""
    with suppress(OSError):
        return hashlib.sha256(file.read_bytes()).hexdigest() == digest
    return False


def _pack(package: NpmPackage, npm: str, room: Path) -> Path:
    """Let npm write the archive of a package into an empty folder."""
    command = [npm, "pack", package.title]
    # Without a network npm tries for longer than anybody waits.
    environment = {"npm_config_fetch_retries": "1", **os.environ}
    try:
        done = subprocess.run(
            command,
            cwd=room,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OmpqError(_explain(package, f"npm gave nothing in {_TIMEOUT} s")) from error
    archives = sorted(room.glob("*.tgz"))
    if done.returncode or not archives:
        raise OmpqError(_explain(package, _find_reason(done.stderr)))
    return archives[0]


def _find_reason(said: str) -> str:
    """Find the line that says why npm failed.

    >>> _find_reason("npm notice\\nnpm error code ENOTFOUND\\nnpm error network request failed\\n")
    'npm says "code ENOTFOUND"; is there a network?'
    """
    for line in said.splitlines():
        # Versions of npm before the tenth speak louder.
        reason = re.fullmatch(r"npm (?:error|ERR!) (.+)", " ".join(line.split()))
        if reason:
            return f'npm says "{reason[1]}"; is there a network?'
    return "npm gave no archive"


def _read_files(package: NpmPackage, archive: Path) -> dict[str, bytes]:
    """Read the files that are needed out of an archive; nothing is unpacked to the disk."""
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for path, digest in package.digests.items():
                member = opened.extractfile(f"package/{path}")
                content = b"" if member is None else member.read()
                if hashlib.sha256(content).hexdigest() != digest:
                    raise OmpqError(_explain(package, f"{path} is not what was published"))
                contents[path] = content
    except _UNREADABLE as error:
        raise OmpqError(_explain(package, f"its archive cannot be read: {error}")) from error
    return contents


def _explain(package: NpmPackage, reason: str) -> str:
    return f"a web page needs npm, once, to fetch {package.title}: {reason}"
