"""The page of `minibark inspect` in a browser: it plays, follows, seeks, and can do without."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest

from minibark import Bark
from minibark.study import Trace, save_page, trace

TEXT = 'Say "<b>hi</b>", <script>document.title = "taken"</script> now.'
WAIT = "new Promise((done) => setTimeout(done, {}))"
AT = "document.getElementById('player').currentTime"


@pytest.fixture(scope="module")
def seen() -> Trace:
    bark = Bark.from_pretrained("tiny", device="cpu")
    found = trace(bark, "Yes, we can see it.", "female", seed=1)
    words = [
        dataclasses.replace(word, text=TEXT) if not i else word
        for i, word in enumerate(found.words)
    ]
    return dataclasses.replace(found, text=TEXT, words=tuple(words))


@pytest.fixture(scope="module")
def url(seen: Trace, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    save_page(seen, path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    with chromium.Chromium() as one:
        yield one


@pytest.fixture
def page(browser: chromium.Chromium, url: str) -> chromium.Chromium:
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    browser.navigate(url)
    browser.evaluate(
        "new Promise((done) => {const p = document.getElementById('player');"
        "p.readyState ? done() : p.addEventListener('loadedmetadata', done)})"
    )
    return browser


def test_it_asks_for_nothing_and_nothing_goes_wrong(page, url):
    assert page.complaints() == []
    asked = [t["request"]["url"] for m, t in page.events if m == "Network.requestWillBeSent"]
    assert asked and all(one == url or one.startswith("data:") for one in asked)


def test_the_text_s_own_script_does_not_run(page):
    assert page.evaluate("document.title").startswith('Say "<b>hi</b>", <script>')
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.querySelector('h1').textContent") == TEXT
    # The policy refuses a script that came in all the same, and any request.
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        "{textContent: 'window.taken = 1'}))"
    )
    assert page.evaluate("window.taken") is None
    assert page.evaluate("fetch('https://example.org').then(() => 1, () => 0)") == 0


def test_every_player_has_the_sound(page, seen):
    lengths = page.evaluate(
        "Promise.all([...document.querySelectorAll('audio')].map((a) => new Promise((done) => {"
        "a.readyState ? done(a.duration) : (a.addEventListener('loadedmetadata',"
        "() => done(a.duration)), a.load())})))"
    )
    assert len(lengths) == 1 + len(seen.depths)
    assert lengths == pytest.approx([seen.duration_s] * len(lengths), abs=0.05)


def test_it_plays_and_the_cursor_follows_in_every_row(page):
    page.evaluate("document.getElementById('player').play()")
    page.evaluate(WAIT.format(500))
    page.evaluate("document.getElementById('player').pause()")
    at, whole = page.evaluate(f"[{AT}, document.getElementById('player').duration]")
    assert 0.1 < at < whole
    page.evaluate(WAIT.format(100))
    places = page.evaluate(
        "[...document.querySelectorAll('.cursor')].map((c) => c.getBoundingClientRect().x"
        " - c.parentNode.getBoundingClientRect().x)"
    )
    widths = page.evaluate(
        "[...document.querySelectorAll('.lane:not(.still)')].map((c) => c.clientWidth)"
    )
    assert len(places) == len(widths) > 15
    assert places == pytest.approx([at / whole * width for width in widths], abs=3)


def test_a_word_is_heard_where_it_is_said_and_no_further(page, seen):
    time = seen.alignment.words[1]
    page.click(".words li:nth-child(2) button")
    assert time.start_s - 0.01 <= page.evaluate(AT) < time.end_s + 0.1
    assert not page.evaluate("document.getElementById('player').paused")
    page.evaluate(WAIT.format(1000 * (time.end_s - time.start_s) + 500))
    assert page.evaluate("document.getElementById('player').paused")
    assert page.evaluate(AT) == pytest.approx(time.end_s, abs=0.15)


def test_a_word_s_end_counts_no_more_after_a_pause_or_the_player_s_own_bar(page, seen):
    word, player = seen.alignment.words[1], "document.getElementById('player')"
    page.click(".words li:nth-child(2) button")
    page.evaluate(f"{player}.pause()")
    page.evaluate(WAIT.format(50))
    page.evaluate(f"{player}.play()")
    page.evaluate(WAIT.format(1000 * (word.end_s - word.start_s) + 200))
    assert not page.evaluate(f"{player}.paused") and page.evaluate(AT) > word.end_s + 0.05
    page.click(".words li:nth-child(2) button")  # while it plays; the page's own way counts
    page.evaluate(WAIT.format(1000 * (word.end_s - word.start_s) + 300))
    assert page.evaluate(f"{player}.paused")
    page.click(".words li:nth-child(2) button")
    page.evaluate(f"{player}.currentTime = {word.end_s + 0.3}")  # as the bar does
    page.evaluate(WAIT.format(200))
    assert not page.evaluate(f"{player}.paused") and page.evaluate(AT) > word.end_s + 0.35


def test_the_last_word_can_be_heard_and_then_the_first(page, seen):
    n = len(seen.alignment.words)
    for number, time in ((n, seen.alignment.words[-1]), (1, seen.alignment.words[0])):
        page.click(f".words li:nth-child({number}) button")
        page.evaluate(WAIT.format(300))
        assert page.evaluate("document.getElementById('player').error") is None
        assert time.start_s < page.evaluate(AT) < time.end_s + 0.3
    assert page.evaluate("document.getElementById('alarm').hidden")
    assert page.complaints() == []


def test_a_player_that_fails_says_so(page):
    page.evaluate("document.getElementById('player').src = 'data:audio/wav;base64,AAAA'")
    page.evaluate(WAIT.format(200))
    assert "cannot be played" in page.evaluate("document.getElementById('alarm').textContent") or (
        "has failed" in page.evaluate("document.getElementById('alarm').textContent")
    )
    page.click(".words li:nth-child(2) button")
    assert page.complaints() == []


def test_a_click_in_a_row_goes_there(page, seen):
    page.click("#semantic .lane")
    assert page.evaluate(AT) == pytest.approx(seen.duration_s / 2, abs=0.02)
    told = page.evaluate("document.querySelector('[data-readout=semantic]').textContent")
    step = int(seen.duration_s / 2 * 49.9)
    drawn = [f"token {s}: id {seen.semantic.tokens[s]}," for s in (step - 1, step, step + 1)]
    assert told.startswith(tuple(drawn))


def test_keys(page, seen):
    page.key("ArrowRight")
    page.key("ArrowRight")
    assert page.evaluate(AT) == pytest.approx(0.04, abs=0.001)
    page.key("ArrowLeft")
    assert page.evaluate(AT) == pytest.approx(0.02, abs=0.001)
    starts = [word.start_s for word in seen.alignment.words if word.start_s > 0.021]
    page.key("]")
    assert page.evaluate(AT) == pytest.approx(starts[0], abs=0.001)
    page.key("]")
    assert page.evaluate(AT) == pytest.approx(starts[1], abs=0.001)
    page.key("[")
    assert page.evaluate(AT) == pytest.approx(starts[0], abs=0.001)
    page.key(" ", "Space", " ")
    assert not page.evaluate("document.getElementById('player').paused")
    page.key(" ", "Space", " ")
    assert page.evaluate("document.getElementById('player').paused")
    page.evaluate("document.getElementById('player').focus()")
    at = page.evaluate(AT)
    page.key("ArrowRight")
    assert page.evaluate(AT) == pytest.approx(at + 0.02, abs=0.001)
    # Tab reaches the words, and Enter says one.
    page.evaluate("document.querySelector('.words button').focus()")
    page.key("Enter", "Enter", "\r")
    assert not page.evaluate("document.getElementById('player').paused")


def test_a_wide_table_can_be_scrolled_by_keys(page):
    table = "document.getElementById('cost-data').parentNode"
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.until(f"{table}.tabIndex === 0")
    page.evaluate(f"{table}.focus()")
    page.key("ArrowRight", number=39)
    page.until(f"{table}.scrollLeft > 0")
    assert page.evaluate(AT) == 0
    page.call("Emulation.clearDeviceMetricsOverride")
    prompts = "document.getElementById('prompts').parentNode"  # which has room again
    page.until(f"!{prompts}.hasAttribute('tabindex')")


def test_without_javascript_all_can_be_read(page, url, seen):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.navigate(url)
    # Asked from outside the page, where nothing runs.
    root = page.call("DOM.getDocument", depth=0)["root"]["nodeId"]
    for table, least in (
        ("words", len(seen.words)),
        ("semantic-data", len(seen.semantic.tokens)),
        ("word-times", len(seen.alignment.words)),
        ("windows", len(seen.windows)),
        ("frame-data", seen.voice.fine.shape[1]),
        ("depth-data", 4),
        ("cost-data", 4),
        ("setting-data", 15),
    ):
        rows = page.call("DOM.querySelectorAll", nodeId=root, selector=f"#{table} tbody tr")
        assert len(rows["nodeIds"]) >= least, table
    assert not page.call("DOM.querySelectorAll", nodeId=root, selector=".cursor")["nodeIds"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#word-times")["nodeId"]
    assert page.call("DOM.getBoxModel", nodeId=node)["model"]["height"] > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_and_can_be_read_light_and_dark(page, scheme, width):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.call("Emulation.setEmulatedMedia", features=features)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    labels = page.evaluate(
        "[...document.querySelector('#semantic .axis').querySelectorAll('text')]"
        ".map((t) => t.getBoundingClientRect()).filter((b) => b.width).map((b) => [b.x, b.right])"
    )
    assert len(labels) > 2
    assert all(right + 2 < x for (_, right), (x, _) in itertools.pairwise(labels))
    colours = page.evaluate(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name]"
        ".match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0))"
    )
    assert (colours[0] < colours[1]) == (scheme == "light")
    assert abs(colours[0] - colours[1]) > 450
    page.call("Emulation.clearDeviceMetricsOverride")
