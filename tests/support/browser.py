"""A real browser for tests, headless, driven by the DevTools protocol over a pipe; from Debian's package where there is none.

with browser.running(folder) as chromium:
    seen = chromium.open(path, width=380, dark=True)     what happened while it loaded
    chromium.run("document.title")                       the value of an expression in the page
    chromium.picture(path, 900)                          a PNG of the page's top
"""

import base64
import contextlib
import dataclasses
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolbox import debian, shell

PACKAGE = "chromium-headless-shell"
NAMES = (PACKAGE, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Browsers that understand the same words; the first that the machine has is taken."""

PATIENCE = 120.0
"""Seconds that an answer may take on a machine that is busy with other things."""


def program() -> str:
    for name in NAMES:
        if found := shell.find(name):
            return found
    debian.ensure([PACKAGE], "the test of the report")
    found = shell.find(PACKAGE)
    assert found is not None
    return found


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a page did while it loaded."""

    requests: list[str]
    """Requested URLs, without the page itself, whether they were blocked or not."""
    complaints: list[str]
    """What the console said: errors, warnings, refusals by the Content-Security-Policy."""


class Browser:
    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process, self._log = process, log
        self._unread, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """A command's result; what happens until it is there is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            got = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            assert got, f"the browser fell silent: {self._log.read_text(errors='replace')[-2000:]}"
            self._unread += got
        message, self._unread = self._unread.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, page: Path, *, width: int = 1200, dark: bool = False, media: str = "screen") -> Seen:
        """Loads a file in a window of this width, in CSS pixels, and waits until all that it asks for is there or refused."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        requests = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        complaints = [
            json.dumps(event["params"])[:600]
            for event in self.events
            if event["method"]
            in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded")
        ]
        return Seen([url for url in requests if url != page.as_uri()], complaints)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, file: Path, height: int, scale: float = 1.0) -> None:
        """A PNG of the upper `height` pixels of the page, made smaller by `scale`."""
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": scale}
        got = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(got["data"]))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`; it ends with the block."""
    log = folder / "browser.log"
    words = [
        program(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "--no-first-run",
        "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
        "--font-render-hinting=none",
        # The sandbox does not start as root, which is what containers of tests run as; only our own pages are opened.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    # The protocol is spoken on the descriptors 3 and 4, which the shell makes of the ends of our pipes.
    join = ["sh", "-c", 'exec "$@" 3<&0 4>&1 1>&2', "sh"]
    with log.open("wb") as errors:
        process = subprocess.Popen([*join, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        yield Browser(process, log)
    finally:
        process.terminate()
        process.wait(30)
