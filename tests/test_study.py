"""What a trace says is so: its samples are say's, its numbers those of independent models."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import checkpoints as made
import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

from minibark import Bark, Voice
from minibark.coarse import start_row, window_prompt
from minibark.commands.main import main
from minibark.gpu.decoder import GraphDecoder
from minibark.semantic import semantic_prompt
from minibark.study import Trace, numbers, page, read_text, save_page, trace
from minibark.study.align import LEAD_S, align, best_path, monotonicity, pick_heads
from minibark.study.attention import text_attention
from minibark.study.words import Word, placed_words, words_of_ids

TEXT, VOICE, SEED = "The weather will be fine in the morning.", "female", 0
EVIL = (
    "</script><script>alert('1')</script> \"quoted\" & 'so' "
    "\u202etfel ot thgir\u202c שלום \x07\ud800"
)


@pytest.fixture(scope="module")
def bark() -> Bark:
    return Bark.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def seen(bark: Bark) -> Trace:
    return trace(bark, TEXT, VOICE, seed=SEED)


# ---- the same samples ----


def test_samples_and_tokens_are_those_of_generate(bark, seen):
    said = bark.generate_voice(TEXT, VOICE, seed=SEED)
    for part in ("semantic", "coarse", "fine"):
        assert torch.equal(getattr(said, part), getattr(seen.voice, part))
    np.testing.assert_array_equal(bark.decode(said.fine), seen.audio)
    assert seen.ended == "probable" and seen.end_p[-1] >= 0.2 > seen.end_p[:-1].max()


def test_samples_are_the_same_in_int8():
    bark = Bark.from_pretrained("tiny", device="cpu", precision="int8")
    options = {"seed": 2, "max_duration_s": 0.4, "top_k": 50, "top_p": 0.95}
    audio = bark.generate("Good morning.", "male", **options)
    found = trace(bark, "Good morning.", "male", **options)
    np.testing.assert_array_equal(audio, found.audio)
    assert found.ended == "limit" and len(found.end_p) == len(found.semantic.tokens)
    assert found.semantic.rank.max() <= 50 and (found.semantic.p > 0).all()


def test_samples_are_the_same_where_steps_are_recorded(bark):
    other = Bark.from_pretrained("tiny", device="cpu")
    other.pipeline.new_decoder = lambda model, n_merged, _: GraphDecoder(model, n_merged)
    options = {"seed": 3, "max_duration_s": 0.4}
    audio = other.generate("Good morning.", "male", **options)  # 60 steps at once
    np.testing.assert_array_equal(audio, trace(other, "Good morning.", "male", **options).audio)
    assert other.pipeline.new_decoder is not bark.pipeline.new_decoder


def test_a_text_that_ends_at_once_has_a_trace_and_no_page(bark):
    with pytest.warns(UserWarning, match="no audio"):
        found = trace(bark, "Hi.", seed=0, min_eos_p=0.0)
    assert len(found.audio) == len(found.semantic.tokens) == 0 and len(found.end_p) == 1
    assert found.ended == "probable" and found.alignment.words == ()
    json.dumps(numbers(found), allow_nan=False)
    with pytest.raises(ValueError, match="nothing to show"):
        page(found)


# ---- the numbers ----


def test_probabilities_are_those_of_a_whole_pass(bark, seen):
    g, voice = bark.config.generation, bark.load_voice(VOICE)
    ids = torch.tensor(bark.tokenizer.encode(TEXT))
    sequence = torch.cat((semantic_prompt(ids, voice.semantic, g), seen.voice.semantic))
    length, end = g.max_input_semantic_length, g.semantic_vocab_size
    logits = bark.model("semantic")(sequence[None], length)[0, length:, : end + 1]
    drawn_from = (logits / 0.7).softmax(-1)
    tokens = torch.from_numpy(seen.semantic.tokens)
    at = (torch.arange(len(tokens)), tokens)
    entropy = -(drawn_from * drawn_from.log2()).nansum(-1)[:-1]
    np.testing.assert_allclose(seen.semantic.p, drawn_from[at], atol=2e-4)
    np.testing.assert_allclose(seen.semantic.own_p, logits.softmax(-1)[at], atol=2e-4)
    np.testing.assert_allclose(seen.semantic.entropy, entropy, atol=2e-3)
    np.testing.assert_allclose(seen.end_p, drawn_from[:, end], atol=2e-4)
    order = logits[:-1].argsort(-1, descending=True)
    ranks = (order == tokens[:, None]).nonzero()[:, 1] + 1
    assert (seen.semantic.rank == ranks.numpy()).mean() > 0.98  # but for near ties


def test_windows_saw_what_their_prompts_hold_and_their_draws_fit(bark, seen):
    g, voice = bark.config.generation, bark.load_voice(VOICE)
    row = start_row(seen.voice.semantic, voice, g)
    offsets = torch.arange(2)[:, None] * g.codebook_size + g.semantic_vocab_size
    row.coarse[row.n_history :] = (seen.voice.coarse + offsets).T.flatten()
    model, n = bark.model("coarse"), g.max_coarse_input_length
    for window in seen.windows[::3]:
        prompt = window_prompt(row, window.step, g)
        first, last = (at + row.n_semantic_history for at in window.semantic)
        assert torch.equal(prompt[: last - first], row.semantic[first:last])
        assert (prompt[last - first : n] == g.coarse_semantic_pad_token).all()
        first, last = (at + row.n_history for at in window.coarse)
        assert torch.equal(prompt[n + 1 :], row.coarse[first:last])
        made_now = row.coarse[last : last + window.end - window.step]
        logits = model(torch.cat((prompt, made_now[:-1]))[None])[0, len(prompt) - 1 :]
        for i, token in enumerate(made_now.tolist()):
            frame, book = divmod(window.step + i, 2)
            first = g.semantic_vocab_size + book * g.codebook_size
            p = (logits[i, first : first + g.codebook_size] / 0.7).softmax(-1)[token - first]
            assert abs(float(p) - seen.coarse.p[book, frame]) < 5e-4


def test_fine_draws_fit_the_last_buffer(bark, seen):
    g, voice = bark.config.generation, bark.load_voice(VOICE)
    history, n_frames = voice.fine[:, -g.max_fine_history_length :], seen.voice.fine.shape[1]
    whole = torch.cat((history, seen.voice.fine), 1).T
    length, hop = g.max_fine_input_length, g.max_fine_history_length
    assert len(whole) > length  # so that the last buffer is not the first
    # For the last codebook all others are final; its own are, but where they were not yet made.
    buffer = whole[-length:].clone()
    once = seen.n_predicted == 1
    fresh = min(hop, n_frames) - int((seen.n_predicted[-hop:] > 1).sum())
    buffer[-fresh:, -1] = g.codebook_size
    logits = bark.model("fine")(buffer[None], 7)[0, -fresh:, : g.codebook_size]
    p = (logits / 0.5).softmax(-1).gather(1, whole[-fresh:, -1:])[:, 0]
    assert once[-fresh:].all()
    assert abs(float(p.mean()) - seen.fine.p[-1, -fresh:].mean()) < 0.2
    assert seen.n_predicted.min() == 1 and seen.n_predicted.max() == 2
    assert seen.fine.tokens.shape == seen.fine.p.shape == (6, n_frames)


def test_attention_is_that_of_transformers(tmp_path):
    whole, g = made.build_transformers(made.TINY), made.TINY.generation
    model = Bark.from_pretrained(made.save_hf(whole, tmp_path), device="cpu").model("semantic")
    theirs = whole.semantic
    random = torch.Generator().manual_seed(0)
    text = torch.randint(0, 100, (6,), generator=random)
    history = torch.randint(0, 40, (8,), generator=random)
    tokens = torch.randint(0, 40, (11,), generator=random)
    prompt = semantic_prompt(text, history, g)
    ours = text_attention(model, prompt, tokens, 8, 6)
    ids = torch.cat((prompt, tokens[:-1]))[None]
    embedded = theirs.input_embeds_layer(ids)
    merged = torch.cat((embedded[:, :8] + embedded[:, 8:16], embedded[:, 16:]), 1)
    theirs.set_attn_implementation("eager")
    weights = theirs(inputs_embeds=merged, output_attentions=True).attentions
    expected = torch.stack(weights)[:, 0, :, 8:, :6]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert ours.shape == (2, 2, 11, 6) and ours.std() > 0.01


def test_costs_count_what_the_loops_did(seen):
    semantic, coarse, fine, codec = seen.costs
    assert [cost.stage for cost in seen.costs] == ["semantic", "coarse", "fine", "codec"]
    assert semantic.n_calls == len(seen.end_p)
    assert semantic.n_positions == 65 + len(seen.end_p) - 1
    assert coarse.n_calls == seen.coarse.tokens.size and fine.n_calls % 6 == 0
    assert 0 < semantic.step_s < semantic.seconds and 0 < semantic.bandwidth_share
    assert codec.step_s is None and codec.memory_bytes > 1e8


def test_sound_at_each_depth(bark, seen):
    assert list(seen.depths) == [1, 2, 4, 8] and seen.depths[8] is seen.audio
    np.testing.assert_array_equal(seen.depths[2], bark.pipeline.decode(seen.voice.fine[:2]))
    errors = [one["error_db"] for one in numbers(seen)["depths"]]
    assert errors[-1] is None and errors[0] > errors[1] > errors[2]


def test_words_end_with_the_sound_and_what_cannot_be_read_has_no_time(bark, seen):
    assert max(time.end_s for time in seen.alignment.words) <= seen.duration_s
    with pytest.warns(UserWarning, match="cannot be read"):
        found = trace(bark, "Yes 😀 : no.", VOICE, seed=0, max_duration_s=0.5)
    timed = [found.words[time.word].text for time in found.alignment.words]
    assert timed == ["Yes", ":", "no", "."]
    assert found != dataclasses.replace(found)  # arrays have no equality of their own


def test_words_have_their_slots(bark):
    words = placed_words(bark.tokenizer.words("Bark, 😀 hello"), bark.tokenizer, 5)
    ids = bark.tokenizer.encode("Bark, 😀 hello")
    assert [i for word in words for i in word.ids] == ids
    assert [word.text for word in words] == ["Bark", ",", "😀", "hello"]
    assert [word.slot for word in words] == [0, 4, 5, 6]
    assert [word.n_cut for word in words] == [0, 0, 1, len(words[3].ids)]
    assert [word.is_unknown for word in words] == [False, False, True, False]
    assert [word.is_spoken for word in words] == [True, False, False, False]
    again = words_of_ids(ids, bark.tokenizer, 5)
    assert [word.ids for word in again] == [word.ids for word in words]


# ---- the alignment ----


def test_a_planted_walk_is_found():
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.full(7, 0.3), (3, 2, 60)).astype(np.float32) * 0.3
    attention[:, 1, :, 0] = 0.9  # heads that stay where they are
    true = np.sort(np.concatenate((np.arange(7), rng.integers(0, 7, 53))))
    attention[2, 0, np.arange(60), true] += 0.6
    scores = monotonicity(attention.reshape(6, 60, 7)).reshape(3, 2)
    (best, *_) = pick_heads(scores)
    assert (best.layer, best.head) == (2, 0) and best.score > 0.4 > 4 * scores[:, 1].max()
    words = [Word(str(i), (str(i),), (0,), i, False, 0) for i in range(7)]
    found = align(attention, words, 50.0)
    assert (found.slots == true).mean() > 0.95
    for index, time in enumerate(found.words):
        assert abs(time.start_s - (np.flatnonzero(true == index)[0] / 50 + LEAD_S)) < 0.05


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 9), (9, 9), (40, 9)])
def test_a_path_goes_from_the_first_slot_to_the_last(shape):
    scores = np.random.default_rng(shape[0]).normal(size=shape)
    path = best_path(scores)
    assert path.shape == shape[:1] and path[-1] == shape[1] - 1
    assert (np.diff(path) >= 0).all() and (shape[0] == 1 or path[0] == 0)
    if shape[0] >= shape[1]:
        assert set(path.tolist()) == set(range(shape[1]))


def test_words_are_where_pocketsphinx_hears_them(bark, seen):
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(samprate=16_000, lm=None, loglevel="FATAL")
    names = re.findall("[a-z]+", TEXT.lower())
    decoder.set_align_text(" ".join(names))
    padded = np.pad(seen.audio, (4_800, 7_200))
    samples = (np.clip(resample_poly(padded, 2, 3), -1, 1) * 32_767).astype(np.int16)
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), full_utt=True)
    decoder.end_utt()
    heard = [s for s in decoder.seg() if re.match("[a-z]", s.word)]
    times = [time for time in seen.alignment.words if seen.words[time.word].is_spoken]
    assert [re.sub(r"\(\d\)", "", s.word) for s in heard] == names and len(times) == len(names)
    ours = np.array([(time.start_s, time.end_s) for time in times])
    theirs = np.array([(s.start_frame / 100, (s.end_frame + 1) / 100) for s in heard]) - 0.2
    errors = np.abs(ours - theirs)
    assert np.median(errors) < 0.07 and np.quantile(errors, 0.9) < 0.18, errors.round(3)
    (best, *_) = seen.alignment.heads
    assert (best.layer, best.head) == (1, 0) and best.score > 0.6


# ---- what is written ----


class Tables(HTMLParser):
    """The cells of each table by its id, and whether tags are closed as they were opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag in ("meta", "link", "img"):
            return
        self.open.append(tag)
        self.scripts += tag == "script"
        if tag == "table":
            self.rows = self.found.setdefault(dict(attrs)["id"] or "", [])
        elif tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An SVG shape."""

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += data


def test_the_page_can_be_read_without_javascript_and_is_small(seen):
    html = page(seen)
    tables = Tables(html)
    assert tables.open == [] and tables.scripts == 1
    assert len(tables.ids) == len(set(tables.ids)) > 15
    rows = tables.found["semantic-data"][1:]
    assert [int(row[2]) for row in rows] == seen.voice.semantic.tolist()
    rows = tables.found["frame-data"][1:]
    assert [[int(code) for code in row[2:10]] for row in rows] == seen.voice.fine.T.tolist()
    words = [row[0] for row in tables.found["word-times"][1:]]
    assert words == [word.text for word in seen.words]
    assert len(html.encode()) < 60_000 + 144_000 * seen.duration_s  # 1.5 MB for 10 s
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?:(?!//www.w3)""", html)


def test_text_from_outside_stays_text(bark, seen):
    words = placed_words(bark.tokenizer.words(EVIL), bark.tokenizer, 64)[: len(seen.words)]
    settings = seen.settings | {"text": EVIL, "voice": EVIL, "model": EVIL}
    html = page(dataclasses.replace(seen, text=EVIL, words=words, settings=settings))
    tables = Tables(html)
    assert tables.scripts == 1 and "alert('" not in html and "\x07" not in html
    assert "\u202etfel" in html and '<bdi dir="auto">' in html
    assert ["alert", "("] == [row[0] for row in tables.found["words"][1:]][7:9]
    html.encode("utf-8")


def test_numbers_are_json_and_the_same_as_the_arrays(seen):
    found = json.loads(json.dumps(numbers(seen), allow_nan=False))
    np.testing.assert_allclose(found["semantic"]["p"], seen.semantic.p, rtol=1e-5)
    assert found["semantic"]["tokens"] == seen.voice.semantic.tolist()
    assert found["alignment"]["words"][1]["text"] == "weather"
    assert np.shape(found["alignment"]["attention"]["1.0"]) == seen.alignment.weights.shape
    assert found["settings"]["seed"] == SEED and len(found["settings"]["model_checksum"]) == 64
    assert [window["step"] for window in found["coarse"]["windows"]][:3] == [0, 60, 120]


def test_a_text_that_is_far_too_long_is_shown_in_part(bark, seen):
    text = "All work and no play. " * 8_000
    words = placed_words(bark.tokenizer.words(text), bark.tokenizer, 64)
    settings = seen.settings | {"text": text}
    long = dataclasses.replace(seen, text=text, words=words, settings=settings)
    html, short = page(long), page(seen)
    assert len(html) < len(short) + 150_000
    shown = Tables(html).found["words"][1:]
    n_left = len(words) - len(shown) + 1
    assert f"{n_left:,} more words" in shown[-1][1]
    found = numbers(long)
    assert found["n_words_left_out"] == n_left > 40_000
    assert len(found["words"]) == len(shown) - 1
    assert len(found["text"]) + found["n_characters_left_out"] == len(text)
    assert found["settings"]["text"] == text and len(json.dumps(found)) < 1.6 * len(text) + 200_000
    assert command_in(html)[-2:] == ["-i", "text.txt"] and "into text.txt first" in html


def test_words_that_were_not_said_are_guesses_or_have_no_button(bark):
    text = "Hello my friend of mine how are you!"
    found = trace(bark, text, VOICE, seed=0, max_duration_s=0.8)
    times = {found.words[time.word].text: time for time in found.alignment.words}
    assert found.ended == "limit" and not times["!"].has_time and times["!"].is_guess
    assert not times["my"].is_guess and times["mine"].is_guess and times["mine"].has_time
    html = page(found)
    notes = {row[0]: row[4] for row in Tables(html).found["word-times"][1:]}
    assert (notes["my"], notes["mine"], notes["!"]) == ("", "a guess", "no sound is left for it")
    chips = re.findall(r"<li><(button|span)([^>]*)>(.*?)</\1></li>", html)
    assert len(chips) == len(times)
    for (tag, attributes, content), (word, time) in zip(chips, times.items(), strict=True):
        assert f">{word}</bdi>" in content
        assert (tag == "button") == time.has_time == ("data-from" in attributes)
        assert ("guess" in attributes) == (time.is_guess or not time.has_time)
        assert bool(notes[word]) == (f"({notes[word]})" in content)
    assert html.count('<g class="word') == sum(time.has_time for time in times.values())


def test_a_text_read_before_gives_the_same_trace(bark):
    read = read_text(bark, "Good “morning”.", "plain")
    assert read.text == 'Good "morning".' and read.given == "Good “morning”."
    found = trace(bark, read, VOICE, seed=0, max_duration_s=0.25, normalize="plain")
    other = trace(bark, read.given, VOICE, seed=0, max_duration_s=0.25, normalize="plain")
    np.testing.assert_array_equal(found.audio, other.audio)
    assert found.words == other.words and found.settings == other.settings


def test_what_no_command_can_have_is_said(bark, tmp_path):
    bark.load_voice(VOICE).save(tmp_path / "she.npz")
    other = Bark.from_pretrained("tiny", device="cpu", voices_dir=tmp_path, revision="v1")
    voice = dataclasses.replace(other.load_voice("she"), origin="")
    stream = torch.Generator().manual_seed(0)
    found = trace(other, "Yes:\tno\r\nmaybe", voice, seed=stream, max_duration_s=0.25)
    html = page(found)
    words = command_in(html)
    assert "--seed" not in words and "torch.Generator" in html and "No seed" not in html
    assert "--voice" not in words and "The voice had no name" in html
    assert words[words.index("--voices-dir") + 1] == str(tmp_path)
    assert words[words.index("--revision") + 1] == "v1"
    assert words[-1] == "Yes:\tno\r\nmaybe"


def command_in(html: str) -> list[str]:
    """The words of the command that a page shows."""
    return shlex.split(unescape(re.search('<code id="command">(.*?)</code>', html, re.DOTALL)[1]))


def test_the_command_writes_all_and_its_page_says_how_to_make_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--model", "tiny", "--max-duration", "0.25", "-q"]
    first = ["inspect", "Good <b>day</b>.", *quick, "-o", "a.html", "--json", "a.json"]
    assert main([*first, "--save-voice", "a.npz"]) == 0
    html = Path("a.html").read_text(encoding="utf-8")
    again = command_in(html)
    seed = again[again.index("--seed") + 1]
    Path("a.json").unlink()
    Path("a.npz").rename("b.npz")
    assert main(again[1:]) == 0
    one, two = Voice.load("b.npz"), Voice.load("a.npz")
    assert torch.equal(one.fine, two.fine)
    said = json.loads(Path("a.json").read_text())
    assert said["semantic"]["tokens"] == two.semantic.tolist()
    say = ["say", "Good <b>day</b>.", *quick, "--one-piece", "--seed", seed]
    assert main([*say, "-o", "c.wav", "--save-voice", "c.npz"]) == 0
    assert torch.equal(Voice.load("c.npz").fine, two.fine)


def test_the_page_of_a_trace_names_a_command_that_makes_it(bark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"seed": 5, "max_duration_s": 0.25, "min_eos_p": None, "top_k": 20}
    found = trace(bark, "- Yes.", VOICE, **options)
    _, inspect, *words = command_in(page(found))
    assert main([inspect, "-q", "--save-voice", "x.npz", *words]) == 0
    assert torch.equal(Voice.load("x.npz").fine, found.voice.fine)
    assert Path("inspect.html").stat().st_size > 10_000


def test_the_command_of_a_page_whose_text_came_by_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = f"{shlex.quote(sys.executable)} -m minibark inspect --mod tiny --max-dur 0.25 --seed none"
    script = f"{run} --save-v one.npz -o one.html -qi <(printf 'Yes:\\tand\\r\\nno.\\r\\n')"
    subprocess.run(["bash", "-c", script], check=True)
    again = command_in(Path("one.html").read_text(encoding="utf-8"))
    assert again[-1] == "Yes:\tand\r\nno." and "none" not in again
    Path("one.npz").rename("first.npz")
    assert main([*again[1:-2], "-q", *again[-2:]]) == 0
    assert torch.equal(Voice.load("one.npz").fine, Voice.load("first.npz").fine)


def test_what_is_not_spoken_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = ["--model", "tiny", "--max-duration", "0.25", "-q"]
    assert main(["inspect", "Good morning. [pause:1s] How are you?", *quick]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "say would speak this text in 2 pieces" in line
    assert main(["inspect", "Good morning, all of you. " * 400, *quick]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "reads the first 64: the other" in line and "minibark say" in line


def test_the_voice_that_is_used_is_not_written_over(bark, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bark.load_voice(VOICE).save("she.npz")
    before = Path("she.npz").read_bytes()
    words = ["inspect", "Hi.", "--model", "tiny", "--voices-dir", ".", "--voice", "she"]
    assert main([*words, "--save-voice", "./she.npz"]) == 1
    assert "is the file of the voice she" in capsys.readouterr().err
    assert Path("she.npz").read_bytes() == before and not Path("inspect.html").exists()


@pytest.mark.parametrize("place", ["", "sub.html", "~"])
def test_a_folder_is_no_place_for_a_page(place, seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("sub.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder; name a file in it$") as caught:
        save_page(seen, place)
    assert ".part" not in str(caught.value)


def test_all_files_are_written_or_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("full.json").symlink_to("/dev/full")
    words = ["inspect", "Hi.", "--model", "tiny", "--max-duration", "0.25", "-q", "-o", "a.html"]
    assert main([*words, "--json", "full.json"]) == 1
    assert "No space left" in capsys.readouterr().err and not Path("a.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "page.txt"], "-o must end in .html"),
        (["-o", "page"], "-o must end in .html"),
        (["-o", ""], "-o must end in .html"),
        (["-o", "page.html/"], "-o must end in .html"),
        (["--json", ""], "--json must end in .json"),
        (["--save-voice", ""], "--save-voice must end in .npz"),
        (["-o", "a.html", "--json", "link.json"], "-o and --json are the same file"),
        (["--voice", "v.npz", "--save-voice", "./v.npz"], "--save-voice and --voice are the same"),
    ],
)
def test_odd_places_are_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("link.json").symlink_to("a.html")
    with pytest.raises(SystemExit):
        main(["inspect", "Hi.", "--model", "tiny", *words])
    assert message in capsys.readouterr().err
