"""The server's page in headless Chromium, driven over a pipe by its DevTools protocol."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import wave

import pytest
from serving import serving

pytest.importorskip("starlette")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium"),
]
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--autoplay-policy=user-gesture-required", "--window-size=900,1000"),
)


class Browser:
    """One page of a Chromium that reads commands from file 3 and answers on file 4."""

    def __init__(self, folder) -> None:
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        for number in (from_us, to_us):
            os.set_inheritable(number, True)
        command = 'exec "$0" "$@" 3<&' + f"{from_us} 4>&{to_us}"
        self._process = subprocess.Popen(
            [
                *("bash", "-c", command, CHROMIUM, *FLAGS, "--remote-debugging-pipe"),
                *(f"--user-data-dir={folder}", "about:blank"),
            ],
            pass_fds=(from_us, to_us),
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._numbers, self._left, self._session = itertools.count(1), b"", {}
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = {}
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        self._process.wait(20)

    def call(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.said.append(json.dumps(answer["params"]))

    def _receive(self):
        while b"\0" not in self._left:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser has ended"
            self._left += chunk
        line, _, self._left = self._left.partition(b"\0")
        return json.loads(line)

    def value(self, expression):
        """What an expression of the page is; promises are waited for."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression, seconds=60):
        end = time.monotonic() + seconds
        while not (value := self.value(expression)):
            state = "[document.body.innerText, player.samples, player.context?.state]"
            assert time.monotonic() < end, (expression, self.value(state), self.said)
            time.sleep(0.05)
        return value

    def key(self, key, code, modifiers=0):
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
            )

    def type(self, text):
        self.call("Input.insertText", text=text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with serving("--max-batch", "2") as server:
        browser = Browser(tmp_path_factory.mktemp("chromium"))
        try:
            browser.call("Page.navigate", url=server.url)
            browser.until("document.readyState === 'complete' && typeof player === 'object'")
            yield browser
        finally:
            browser.close()


def test_a_text_is_typed_heard_drawn_kept_and_an_error_is_a_sentence(page, tmp_path):
    page.until("el('voice').options.length > 5")
    assert page.value("document.documentElement.lang") == "en"
    unlabelled = "[...document.querySelectorAll('input,select,textarea')].filter(e => !e.labels[0])"
    assert page.value(f"{unlabelled}.length") == 0
    blank = page.value("el('wave').toDataURL()")

    # By keyboard alone: to the text, all of it anew, a voice, a seed, and Control with Enter.
    page.value("document.activeElement.blur()")
    page.key("Tab", 9)
    assert page.value("document.activeElement.id") == "text"
    page.value("el('text').select()")
    page.type("Hello. We all hope very much that you are well today, my good friend.")
    page.key("Tab", 9)
    assert page.value("document.activeElement.id") == "voice"
    page.key("ArrowDown", 40)
    page.until("el('voice').value === 'female'")
    page.value("el('max_duration_s').value = '0.4'")
    page.key("Tab", 9)
    assert page.value("document.activeElement.id") == "seed"
    page.type("7")
    assert page.value("el('seed').value") == "7"
    page.value("el('text').focus()")
    page.key("Enter", 13, modifiers=2)

    page.until("player.samples > 0")
    assert page.value("player.context.state") == "running"
    page.until("/^All is said/.test(el('status').textContent)")
    assert page.value("player.parts.length") >= 2  # it came in pieces
    seconds = page.value("player.seconds")
    page.until("player.cursor > 0.3 * player.seconds")
    assert page.value("el('wave').toDataURL()") != blank
    assert page.value("Math.max(...player.peaks)") > 0.01
    assert "Wave of" in page.value("el('wave').getAttribute('aria-label')")
    assert page.value("el('used-seed').textContent") == "7"
    for figure in ("first", "length", "rtf"):
        assert float(page.value(f"parseFloat(el('{figure}').textContent)")) > 0

    # What is downloaded is what was heard.
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.value("document.querySelector('a.download').click()")
    path, end = tmp_path / "minibark-7.wav", time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.05)
    with wave.open(str(path)) as file:
        assert file.getframerate() == 24_000
        assert file.getnframes() == round(seconds * 24_000)
    page.value("document.querySelector('#history button').click()")
    page.until("el('status').textContent === 'Replaying.' && player.seconds")
    assert page.value("player.seconds") == seconds

    # An error of the server is a sentence in the alert.
    page.value("el('text').value = '  '; el('form').requestSubmit()")
    page.until("el('error').textContent.startsWith('Input is empty')")
    assert page.value("el('error').textContent").endswith(".")
    assert page.value("el('error').getAttribute('role')") == "alert"
    assert not [line for line in page.said if "Content Security Policy" in line], page.said

    # What was of one piece has a study page, which its policy lets run.
    assert page.value("[...document.querySelectorAll('#history button')].length") == 1
    page.value("el('text').value = 'Hello there.'; el('form').requestSubmit()")
    page.until("document.querySelectorAll('#history li').length === 2")
    page.value(
        "[...document.querySelectorAll('#history button')].find(b => b.textContent === 'Study')"
        ".click()"
    )
    page.until("Boolean(document.querySelector('#history a[target]'))")
    assert page.value("document.activeElement.textContent") == "Study page"
    page.call("Page.navigate", url=page.value("document.activeElement.href"))
    page.until("document.querySelector('audio')?.duration > 0")
    assert page.value("document.querySelector('h1').textContent") == "Hello there."
    assert not [line for line in page.said if "Content Security Policy" in line], page.said
