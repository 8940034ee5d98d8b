"""The server's page in headless Chromium, driven over a pipe by its DevTools protocol."""

import json
import time
import wave

import pytest
from chromium import Chromium, find
from serving import serving

pytest.importorskip("starlette")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    find()  # before anything is loaded
    with serving("--max-batch", "2") as server, Chromium(autoplay=False) as browser:
        browser.navigate(server.url)
        browser.until("typeof player === 'object'")
        yield browser


def test_a_text_is_typed_heard_drawn_kept_and_an_error_is_a_sentence(page, tmp_path):
    page.until("el('voice').options.length > 5")
    assert page.evaluate("document.documentElement.lang") == "en"
    unlabelled = "[...document.querySelectorAll('input,select,textarea')].filter(e => !e.labels[0])"
    assert page.evaluate(f"{unlabelled}.length") == 0
    words = "cannot be read: '🙂', 'кот', 'café', '\\u0041'"
    assert page.evaluate(f"unescaped({json.dumps(ascii(words)[1:-1])})") == words
    blank = page.evaluate("el('wave').toDataURL()")

    # By keyboard alone: to the text, all of it anew, a voice, a seed, and Control with Enter.
    page.evaluate("document.activeElement.blur()")
    page.key("Tab", number=9)
    assert page.evaluate("document.activeElement.id") == "text"
    page.evaluate("el('text').select()")
    page.write("Hello. We all hope very much that you are well today, my good friend.")
    page.key("Tab", number=9)
    assert page.evaluate("document.activeElement.id") == "voice"
    page.key("ArrowDown", number=40)
    page.until("el('voice').value === 'female'")
    page.evaluate("el('max_duration_s').value = '0.4'")
    page.key("Tab", number=9)
    assert page.evaluate("document.activeElement.id") == "seed"
    page.write("7")
    assert page.evaluate("el('seed').value") == "7"
    page.evaluate("el('text').focus()")
    page.key("Enter", number=13, modifiers=2)

    page.until("player.samples > 0")
    assert page.evaluate("player.context.state") == "running"
    page.until("/^All is said/.test(el('status').textContent)")
    assert page.evaluate("player.parts.length") >= 2  # it came in pieces
    seconds = page.evaluate("player.seconds")
    page.until("player.cursor > 0.3 * player.seconds")
    assert page.evaluate("el('wave').toDataURL()") != blank
    assert page.evaluate("Math.max(...player.peaks)") > 0.01
    assert "Wave of" in page.evaluate("el('wave').getAttribute('aria-label')")
    assert page.evaluate("el('used-seed').textContent") == "7"
    for figure in ("first", "length", "rtf"):
        assert float(page.evaluate(f"parseFloat(el('{figure}').textContent)")) > 0

    # What is downloaded is what was heard.
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("document.querySelector('a.download').click()")
    path, end = tmp_path / "minibark-7.wav", time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.05)
    with wave.open(str(path)) as file:
        assert file.getframerate() == 24_000
        assert file.getnframes() == round(seconds * 24_000)
    page.evaluate("document.querySelector('#history button').click()")
    page.until("el('status').textContent === 'Replaying.' && player.seconds")
    assert page.evaluate("player.seconds") == seconds

    # An error of the server is a sentence in the alert.
    page.evaluate("el('text').value = '  '; el('form').requestSubmit()")
    page.until("el('error').textContent.startsWith('Input is empty')")
    assert page.evaluate("el('error').textContent").endswith(".")
    assert page.evaluate("el('error').getAttribute('role')") == "alert"
    assert not [line for line in page.complaints() if "Content Security Policy" in line]

    # What was of one piece has a study page, which its policy lets run.
    assert page.evaluate("[...document.querySelectorAll('#history button')].length") == 1
    page.evaluate("el('text').value = 'Hello there.'; el('form').requestSubmit()")
    page.until("document.querySelectorAll('#history li').length === 2")
    page.evaluate(
        "[...document.querySelectorAll('#history button')].find(b => b.textContent === 'Study')"
        ".click()"
    )
    page.until("Boolean(document.querySelector('#history a[target]'))")
    assert page.evaluate("document.activeElement.textContent") == "Study page"
    page.navigate(page.evaluate("document.activeElement.href"))
    page.until("document.querySelector('audio')?.duration > 0")
    assert page.evaluate("document.querySelector('h1').textContent") == "Hello there."
    assert not [line for line in page.complaints() if "Content Security Policy" in line]


def test_the_later_of_two_quick_submits_is_heard_alone_and_wrong_fields_are_told(page):
    page.navigate(page.evaluate("location.origin"))
    page.until("el('voice').options.length > 5")
    page.key("Tab", number=9)  # browsers give sound only to who has touched the page
    page.evaluate("el('text').value = 'Hello.'; el('max_duration_s').value = '0.35'")
    submit = "el('seed').value = '{}'; el('form').requestSubmit();"
    page.evaluate(submit.format(1) + submit.format(2))
    page.until("/^All is said/.test(el('status').textContent)")
    both = page.evaluate("player.peaks")
    assert page.evaluate("el('used-seed').textContent") == "2"
    assert page.evaluate("document.querySelectorAll('#history li').length") == 1
    page.evaluate(submit.format(2))
    page.until("document.querySelectorAll('#history li').length === 2")
    assert page.evaluate("player.peaks") == both

    page.evaluate("el('temperature').value = '0.713'")  # off any step
    assert page.evaluate("el('form').checkValidity()")
    assert not page.evaluate("document.querySelector('details').open")
    page.evaluate("el('max_duration_s').value = '-1'; el('form').requestSubmit()")
    assert page.evaluate("document.querySelector('details').open")
    assert page.evaluate("el('error').textContent").startswith("Longest piece, seconds: ")
    page.evaluate("el('max_duration_s').value = ''; el('key').value = '\u4f60'")
    page.evaluate("el('form').requestSubmit()")
    page.until("el('error').textContent.startsWith('The key has characters')")
    names = (
        "[...document.querySelectorAll('input,select,textarea')].map(e => e.labels[0].textContent)"
    )
    found = page.evaluate(names)
    assert len(set(found)) == len(found)


def test_a_key_is_asked_for_plainly_and_sound_that_breaks_off_is_not_kept(page):
    with serving("--max-batch", "1", key="a key") as server:
        page.navigate(server.url)
        page.until("el('status').textContent.startsWith('This server has a key')")
        assert page.evaluate("el('error').textContent") == ""
        page.key("Tab", number=9)
        page.evaluate("el('key').value = 'a key'; el('key').dispatchEvent(new Event('change'))")
        page.until("el('voice').options.length > 5")
        page.evaluate("el('text').value = 'I will go on and on, whatever you say. '.repeat(40)")
        page.evaluate("el('form').requestSubmit()")
        page.until("player.samples > 0")
        server.process.kill()
        page.until("el('error').textContent === 'The sound broke off before its end.'")
        assert "not kept" in page.evaluate("el('status').textContent")
        assert page.evaluate("document.querySelectorAll('#history li').length") == 0
        page.evaluate("el('form').requestSubmit()")
        page.until("el('error').textContent === 'The server cannot be reached.'")
        page.evaluate("el('stop').click()")
        assert page.evaluate("el('pause').getAttribute('aria-pressed')") == "false"
