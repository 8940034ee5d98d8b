"""A headless Chromium for tests of pages, over its debugging pipe: launch, navigate, evaluate."""

import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ),
    *("--mute-audio", "--window-size=1100,900"),
    *("--disable-background-networking", "--disable-extensions"),
)


def find() -> str:
    """The browser's path; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(_NAMES)}); `apt-get install chromium` brings one")
    return found


class Chromium:
    """A browser with one page; a context manager.

    Attributes:
        events: what the page has told since it was last navigated: (method, parameters).
    """

    def __init__(self, timeout_s: float = 60, autoplay: bool = True) -> None:
        """`autoplay` lets a page play unasked; a browser of a person asks for a key or click."""
        self._timeout_s, self._autoplay = timeout_s, autoplay
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._profile = tempfile.mkdtemp(prefix="minibark-chromium-")
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # It reads commands from descriptor 3 and answers on 4.
        asked = "" if autoplay else "user-gesture-required"
        policy = f"--autoplay-policy={asked or 'no-user-gesture-required'}"
        words = [find(), "--remote-debugging-pipe", f"--user-data-dir={self._profile}", policy]
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *words, *_FLAGS, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol.

        Raises:
            RuntimeError: the browser refuses it. TimeoutError: it does not answer.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            if "method" in answer:
                self.events.append((answer["method"], answer.get("params", {})))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def navigate(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            answer = self._next()
            self.events.append((answer["method"], answer.get("params", {})))

    def evaluate(self, code: str) -> Any:
        """The value of an expression, or of the promise that it is, in the page.

        Raises:
            RuntimeError: it threw.
        """
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": self._autoplay}
        found = self.call("Runtime.evaluate", expression=code, **options)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def until(self, code: str) -> Any:
        """The value of an expression once it is true.

        Raises:
            TimeoutError: it does not become so.
        """
        end = time.monotonic() + self._timeout_s
        while not (value := self.evaluate(code)):
            if time.monotonic() > end:
                shown = self.evaluate("document.body.innerText")
                raise TimeoutError(f"{code} in:\n{shown}\n{self.complaints()}")
            time.sleep(0.05)
        return value

    def key(
        self, key: str, code: str = "", text: str = "", number: int = 0, modifiers: int = 0
    ) -> None:
        """Press and release a key, as a person does; `number` is its old code, which some need."""
        named: dict[str, Any] = {"key": key, "code": code or key, "modifiers": modifiers}
        if number:
            named["windowsVirtualKeyCode"] = number
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that a selector finds, as a person does."""
        box = self.evaluate(
            f"(() => {{const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def complaints(self) -> list[str]:
        """What the console has shown of errors, and what was not caught."""
        self.evaluate("new Promise((done) => setTimeout(done, 50))")
        found = []
        for method, told in self.events:
            if method == "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"]))
            elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(told["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
                found.append(str(told["args"]))
        return found

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in), os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + self._timeout_s
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            part = os.read(self._in, 1 << 16) if ready else b""
            if not part:
                raise TimeoutError("the browser does not answer")
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message
