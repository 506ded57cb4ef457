"""Chromium without a window, driven through a pipe by its DevTools protocol; a static server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO, Any

NAMES = "chromium chromium-browser google-chrome google-chrome-stable chrome".split()
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
# Nothing but the pages that are asked for: no updates, no sync, no first run.
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --remote-debugging-pipe"
).split()
# What the browser reads commands from, and writes answers to.
_COMMANDS, _ANSWERS = 3, 4


class Page:
    """A page of the browser.

    Attributes:
        problems: What went wrong in it: errors of its console, exceptions, files not found.
        requests: Addresses that it asked for.
    """

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._session: str | None = None
        self._count = 0
        self._loaded = False
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return what it gives; events before are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        found = bytearray()
        while not found.endswith(b"\0"):
            byte = self._answers.read(1)
            assert byte, "the browser is gone"
            found += byte
        message = json.loads(found[:-1])
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.problems.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(json.dumps(told["entry"]))

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of a size, and wait until its files are there."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._read()

    def resize(self, width: int, height: int) -> None:
        """Give the window a size, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def evaluate(self, code: str) -> Any:
        """Evaluate JavaScript, wait where it gives a promise, and return its JSON-ready value."""
        found = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a condition holds, in JavaScript."""
        self.evaluate(
            "new Promise((resolve, reject) => { let left = 1200; const look = () => "
            f"({condition}) ? resolve() : left-- ? setTimeout(look, 50) : "
            "reject(new Error('in vain: ' + document.body.innerText)); look(); })"
        )

    def choose_file(self, selector: str, file: Path) -> None:
        """Let a file be chosen in an input element."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def save_picture(self, file: Path) -> None:
        """Save what the page looks like, all of its length."""
        height = self.evaluate("document.documentElement.scrollHeight")
        width = self.evaluate("innerWidth")
        self.resize(width, height)
        shot = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def start_browser() -> Iterator[Page]:
    """Start a browser with a fresh profile, and end it with the body."""
    assert BROWSER is not None
    to_browser, from_here = os.pipe()
    to_here, from_browser = os.pipe()

    def connect() -> None:
        # Copies beyond both numbers first, lest one overwrites the other.
        ends = [os.dup(end) for end in (to_browser, from_browser)]
        ends = [os.dup(end) for end in ends if end] if min(ends) <= _ANSWERS else ends
        os.dup2(ends[0], _COMMANDS)
        os.dup2(ends[1], _ANSWERS)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [BROWSER, *_FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=connect,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            with open(from_here, "wb") as commands, open(to_here, "rb") as answers:
                yield Page(commands, answers)
        finally:
            process.terminate()
            process.wait(timeout=30)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder as `python -m http.server` does, and yield its address."""
    handler = partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
