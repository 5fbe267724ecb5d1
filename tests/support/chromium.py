"""A real Chromium without a window, driven over its debugging protocol (CDP).

The protocol itself, and no driver in between: the tests need ten of its methods. The browser lives in a
directory of the test, knows no proxy and fetches nothing on its own account.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.polling import until

_PATIENCE = 20.0


def find_chromium() -> str:
    """Give the program; without one the tests cannot tell what a browser makes of the page."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise AssertionError("The tests of the dashboard need Chromium: apt-get install chromium")


class Chromium:
    """One browser; `with` ends it and all of its processes."""

    def __init__(self, home: Path) -> None:
        self._home = home
        argv = [
            find_chromium(),
            "--headless=new",
            "--no-sandbox",  # root may not have one
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-default-apps",
            "--no-first-run",
            "--no-default-browser-check",
            "--no-proxy-server",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={home}",
            "about:blank",
        ]
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with (home.parent / "chromium.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**kept, "HOME": str(home.parent), "TMPDIR": str(home.parent)},
            )

    def page(self) -> Page:
        """Open a page of its own."""
        port, path = until(self._endpoint, _PATIENCE, "Chromium listens")
        browser = _Socket(f"ws://127.0.0.1:{port}{path}")
        try:
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        finally:
            browser.close()
        return Page(_Socket(f"ws://127.0.0.1:{port}/devtools/page/{target}"))

    def _endpoint(self) -> list[str]:
        return (self._home / "DevToolsActivePort").read_text().split()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Its processes are one group, which is ours: it was started with a session of its own.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


class Page:
    """A page, and what happened in it: `problems` of its programs, and every address it asked for."""

    def __init__(self, socket: _Socket) -> None:
        self._socket = socket
        for domain in ("Page", "Runtime", "Network", "Log"):
            socket.call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._socket.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Give the value of an expression (a promise's when it is kept); AssertionError if it throws."""
        answer = self._socket.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, what: str, timeout: float = _PATIENCE) -> Any:
        return until(lambda: self.evaluate(expression), timeout, what, every=0.05)

    def press(self, key: str, code: int = 0) -> None:
        """Press and release a key by its name, such as Tab (9) or ArrowLeft (37)."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        for kind in ("rawKeyDown", "keyUp"):
            self._socket.call("Input.dispatchKeyEvent", type=kind, **given)

    def move_to(self, x: float, y: float) -> None:
        self._socket.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def resize(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        self._socket.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    def prefer(self, **features: str) -> None:
        """Emulate what a user prefers, such as `prefers_color_scheme="dark"`."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._socket.call("Emulation.setEmulatedMedia", features=wanted)

    def screenshot(self, *, whole: bool = True) -> bytes:
        """Give a PNG of the whole page, or of what is in view."""
        answer = self._socket.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    @property
    def problems(self) -> list[str]:
        """What its programs threw, and what stood in its console as an error or a warning."""
        self._socket.call("Page.getLayoutMetrics")  # whatever happened until now has come
        found = []
        for event, given in self._socket.events:
            entry = given.get("entry", {})
            if event == "Runtime.exceptionThrown":
                found.append(json.dumps(given["exceptionDetails"]))
            elif event == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(given["args"]))
            elif event == "Log.entryAdded" and entry["level"] in ("error", "warning"):
                found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    @property
    def asked(self) -> list[str]:
        """Every address that was asked for, by whatever means."""
        self._socket.call("Page.getLayoutMetrics")
        events = self._socket.events
        return [given["request"]["url"] for event, given in events if event == "Network.requestWillBeSent"]

    def close(self) -> None:
        self._socket.close()


class _Socket:
    """A connection to a target: a call is answered by its number, all else is an event."""

    def __init__(self, address: str) -> None:
        self._held = contextlib.ExitStack()
        self._socket = self._held.enter_context(
            # Nobody reads between two calls, so a ping would find nobody at home.
            connect(address, max_size=None, open_timeout=_PATIENCE, ping_interval=None, proxy=None)
        )
        self._numbers = itertools.count(1)
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=_PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            if "method" in message:
                self.events.append((message["method"], message["params"]))

    def close(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            self._held.close()
