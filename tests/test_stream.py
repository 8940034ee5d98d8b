"""Sound as it comes: `Bark.stream`, and what `minibark say` writes of long texts and where to."""

import io
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from checkpoints import TINY

from minibark import Bark, Voice, VoiceError
from minibark.audio import AudioStream
from minibark.checkpoint.voices import Voices
from minibark.commands.main import main

TEXT = "Ab cd. He is. We go. Oh no. Me too."  # a token a letter, and eight tokens a piece
OPTIONS = {"max_duration_s": 0.3, "allow_early_stop": False, "retries": 0, "goal": 20}
WORDS = ["--max-duration", "0.3", "--no-allow-early-stop", "--retries", "0", "--piece-length", "20"]
UNKNOWN = 0xFFFFFFFF


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A Bark of very small lengths with two voices, as a folder."""
    root, quick = tmp_path_factory.mktemp("stream"), Bark(TINY, device="cpu", seed=3)
    (root / "voices").mkdir()
    for name, seed in (("low", 1), ("high", 2)):
        made = quick.generate_voice("voice", seed=seed, max_duration_s=0.3, allow_early_stop=False)
        made.save(root / "voices" / f"{name}.npz")
    voices = Voices.from_directory(root / "voices")
    Bark(TINY, voices=voices, device="cpu", seed=3).save(root / "model")
    return str(root / "model")


@pytest.fixture(scope="module")
def quick(model) -> Bark:
    return Bark.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def whole(quick) -> np.ndarray:
    return quick.generate_long(TEXT, "low", seed=1, **OPTIONS)


def say(model: str, *words: object) -> int:
    return main(["say", "--model", model, "--seed", "1", *WORDS, *map(str, words)])


def pcm(audio: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(audio, -1, 1).astype(np.float64) * 32767).astype(np.int16)


def sizes(wav: bytes) -> tuple[int, int]:
    """What a WAV's header says of the whole and of the samples."""
    assert (wav[:4], wav[8:16], wav[36:40]) == (b"RIFF", b"WAVEfmt ", b"data")
    return struct.unpack_from("<I", wav, 4)[0], struct.unpack_from("<I", wav, 40)[0]


# ---- in Python


def test_a_stream_is_the_long_sound_in_pieces(quick, whole):
    parts = list(quick.stream(TEXT, "low", seed=1, **OPTIONS))
    assert len(parts) == 5 and {part.dtype for part in parts} == {np.dtype("float32")}
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4, rtol=0)


def test_the_first_sentence_comes_first_and_the_rest_is_packed():
    bark, text = Bark.from_pretrained("tiny", device="cpu"), "Good night. Winter is cold. Go home."
    told: list[tuple[str, int, int]] = []
    stream = bark.stream(text, "male", seed=4, on_step=lambda *step: told.append(step))
    assert not told
    first = next(stream)
    sound = bark.generate("Good night.", "male", seed=4)
    np.testing.assert_allclose(first[: len(sound)], sound, atol=1e-4, rtol=0)
    assert len(first) == len(sound) + 6_000 and not first[len(sound) :].any()
    assert [stage for stage, done, total in told if done == total] == ["semantic", "coarse", "fine"]
    told.clear()
    stream.close()
    assert list(stream) == [] and not told


def test_the_second_piece_is_what_is_left(quick):
    text, options = "[pause:1s] Me. He is. [pause:2s]", OPTIONS | {"silence_s": 0.0}
    first, second = quick.stream(text, "low", seed=1, **options)
    rate = quick.sample_rate
    sounds = [
        quick.generate(one, "low", seed=seed, max_duration_s=0.3, allow_early_stop=False)
        for one, seed in (("Me.", 1), ("He is.", 2))
    ]
    silence = np.zeros(rate, np.float32)
    np.testing.assert_allclose(first, np.concatenate((silence, sounds[0])), atol=1e-4)
    np.testing.assert_allclose(second, np.concatenate((sounds[1], silence, silence)), atol=1e-4)


def test_an_error_of_the_callback_ends_the_stream(quick):
    n_steps = 0

    def stop(*_: object) -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 30:
            raise KeyError("enough")

    stream = quick.stream(TEXT, seed=1, on_step=stop, **OPTIONS)
    with pytest.raises(KeyError, match="enough"):
        list(stream)
    assert n_steps == 30 and list(stream) == []


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("",), {}, "the text is empty"),
        ((["a"],), {}, "text must be one str"),
        (("Ab. [pause:1h]",), {}, "bad pause"),
        (("Ab.",), {"history": "reset:0"}, "history must be"),
        (("Ab.",), {"temperature": -1}, "temperature must be"),
    ],
)
def test_errors_come_at_the_call(quick, args, options, message):
    with pytest.raises(ValueError, match=message):
        quick.stream(*args, **options)
    with pytest.raises(VoiceError, match="no voice 'nobody'"):
        quick.stream("Ab.", "nobody")
    with pytest.raises(TypeError, match="loud"):
        quick.stream("Ab.", loud=True)


# ---- a file that grows


@pytest.mark.parametrize("before", [b"", b"what was there before"])
def test_where_one_can_go_back_the_sizes_are_true(tmp_path, before):
    path, audio = tmp_path / "a.wav", np.linspace(-1.2, 1.2, 700, dtype=np.float32)
    with path.open("wb") as file:
        file.write(before)
        out = AudioStream(file, 16_000)
        for part in np.split(audio, [0, 100, 101]):
            out.write(part)
        assert sizes(path.read_bytes()[len(before) :]) == (UNKNOWN, UNKNOWN)
        out.close()
        file.write(b"behind")
    content = path.read_bytes()
    assert content.startswith(before) and content.endswith(b"behind")
    wav = content[len(before) : -len(b"behind")]
    assert sizes(wav) == (len(wav) - 8, len(wav) - 44)
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert rate == 16_000 and np.array_equal(samples, pcm(audio))


def test_what_appends_harms_nothing(tmp_path):
    path, audio = tmp_path / "a.wav", np.ones(50, np.float32) / 4
    path.write_bytes(b"before")
    with path.open("ab") as file:
        out = AudioStream(file)
        out.write(audio)
        out.close()
    content = path.read_bytes()
    assert content[:6] == b"before" and sizes(content[6:]) == (UNKNOWN, UNKNOWN)
    assert content[50:] == pcm(audio).astype("<i2").tobytes()


# ---- the command line


def test_a_pipe_gets_a_wav_whose_length_is_open(model, whole, monkeypatch):
    read_end, write_end = os.pipe()
    got: list[bytes] = []

    def read() -> None:
        with open(read_end, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, open(write_end, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        assert say(model, TEXT, "--voice", "low", "-q", "-o", "-") == 0
    reader.join()
    assert sizes(got[0]) == (UNKNOWN, UNKNOWN)
    assert np.array_equal(np.frombuffer(got[0][44:], "<i2"), pcm(whole))
    samples, rate = soundfile.read(io.BytesIO(got[0]), dtype="int16")
    assert rate == TINY.codec.sampling_rate and np.array_equal(samples, pcm(whole))


@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_file_as_standard_output(model, whole, monkeypatch, tmp_path, mode, raw):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch, path.open(mode) as stdout:
        patch.setattr(sys, "stdout", stdout)
        words = ["--raw"] if raw else []
        assert say(model, TEXT, "--voice", "low", "-q", "-o", "-", *words) == 0
    content = path.read_bytes()
    if mode == "a":
        assert content[:3] == b"old"
        content = content[3:]
    if not raw:
        n_bytes = 2 * len(whole)
        is_known = mode == "w"
        assert sizes(content) == ((n_bytes + 36, n_bytes) if is_known else (UNKNOWN, UNKNOWN))
        samples, _ = soundfile.read(io.BytesIO(content), dtype="int16")
        assert np.array_equal(samples, pcm(whole))
        content = content[44:]
    assert np.array_equal(np.frombuffer(content, "<i2"), pcm(whole))


def test_raw_samples_in_a_file_of_any_name(model, whole, tmp_path):
    path = tmp_path / "out.pcm"
    assert say(model, TEXT, "--voice", "low", "-q", "--raw", "-o", path) == 0
    assert np.array_equal(np.fromfile(path, "<i2"), pcm(whole))
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_goes_away_ends_the_work(tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("This is a sentence of a very long text. " * 2000)
    command = [sys.executable, "-m", "minibark", "say", "-i", text, "-o", "-", "--model", "random"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while b"semantic" not in seen and (more := process.stderr.read1(4096)):
        seen += more
    process.stdout.close()
    rest = process.stderr.read()
    assert process.wait(timeout=10) == 1
    # Its first piece alone has 768 steps, and three stages more.
    assert b"semantic" in seen and b"coarse" not in rest and b"Traceback" not in seen + rest


def test_closed_standard_output_is_told(model, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)  # as Python has it after >&-
        with pytest.raises(SystemExit) as stop:
            say(model, TEXT, "-o", "-")
    assert stop.value.code == 2
    assert "-o - writes audio to standard output, which is closed" in capsys.readouterr().err


def test_a_chapter_becomes_a_flac_and_a_voice(model, quick, tmp_path, capsys):
    (tmp_path / "chapter.txt").write_text(f"{TEXT}\n[pause:1s]\nBe it.\n")
    out, saved = tmp_path / "chapter.flac", tmp_path / "last.npz"
    given = ["-i", tmp_path / "chapter.txt", "-o", out, "--voice", "low", "--save-voice", saved]
    assert say(model, *given) == 0
    expected = quick.generate_long(f"{TEXT} [pause:1s] Be it.", "low", seed=1, **OPTIONS)
    samples, rate = soundfile.read(out, dtype="int16")
    assert soundfile.info(out).format == "FLAC" and rate == quick.sample_rate
    assert np.array_equal(samples, pcm(expected))
    last = quick.generate_voice("Be it.", "low", seed=6, max_duration_s=0.3, allow_early_stop=False)
    assert np.array_equal(Voice.load(saved).fine, last.fine)
    told = capsys.readouterr()
    assert told.out == ""
    for stage in ("semantic", "coarse", "fine"):
        assert f"  1-6 of 6 {stage}" in told.err
    closing = told.err.strip().splitlines()[-1]
    assert closing.startswith(f"{out}: {len(expected) / rate:.1f} s of audio in ")
    assert ", the first sound after " in closing


def test_bars_name_the_pieces_that_come_one_by_one(model, tmp_path, capsys):
    assert say(model, TEXT, "-o", tmp_path / "a.wav") == 0
    shown = capsys.readouterr().err
    assert "    1 of 5 semantic" in shown and "  2-5 of 5 fine" in shown


def test_quiet_is_silent(model, tmp_path, capsys):
    assert say(model, TEXT, "-q", "-o", tmp_path / "a.wav") == 0
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_each_option_of_long_texts_is_the_keyword_s(model, quick, tmp_path):
    path = tmp_path / "a.wav"
    words = ["--history", "reset:2", "--silence", "0.5", "--language", "de"]
    assert say(model, TEXT, "--voice", "high", "-q", "-o", path, *words) == 0
    expected = quick.generate_long(
        TEXT, "high", seed=1, history="reset:2", silence_s=0.5, language="de", **OPTIONS
    )
    samples, _ = soundfile.read(path, dtype="int16")
    assert np.array_equal(samples, pcm(expected))
    fixed = quick.generate_long(TEXT, "high", seed=1, silence_s=0.5, **OPTIONS)
    assert not np.array_equal(pcm(fixed), samples)


def test_retries_are_told_of(model, tmp_path, capsys):
    args = ["say", "Ab cd. [pause:1s]", "--model", model, "-q", "-o", str(tmp_path / "a.wav")]
    assert main([*args, "--temperature", "0", "--retries", "1"]) == 0
    begin = "minibark: warning: piece 1 ('Ab cd.') did not end and is "
    lines = capsys.readouterr().err.splitlines()
    assert lines == [begin + "made again with another seed", begin + "kept as it is"]


def test_a_dialog(model, quick, tmp_path, capsys):
    text, path = "Ann: Ab cd.\nBob: He is.\nann: We go.", tmp_path / "a.wav"
    speakers = ["--speaker", "Ann=high", "--speaker", "Bob=low"]
    assert say(model, text, "-q", "-o", path, *speakers) == 0
    expected = quick.generate_dialog(text, {"Ann": "high", "Bob": "low"}, seed=1, **OPTIONS)
    samples, _ = soundfile.read(path, dtype="int16")
    assert np.array_equal(samples, pcm(expected))
    assert say(model, text, "--split-preview", *speakers) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("s  ")[-1] for line in lines] == [
        "Ann: Ab cd.",
        "Bob: He is.",
        "Ann: We go.",
    ]


def test_a_preview_says_nothing(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert say(model, "[pause:1s] Ab cd. He is. [pause:500ms] We go.", "--split-preview") == 0
    shown = capsys.readouterr()
    assert shown.err == "" and not list(tmp_path.iterdir())
    assert [line.split() for line in shown.out.splitlines()] == [
        ["1", "5", "tokens", "0.4", "s", "[1", "s]", "Ab", "cd."],
        ["2", "5", "tokens", "0.4", "s", "He", "is.", "[0.5", "s]"],
        ["3", "5", "tokens", "0.4", "s", "We", "go."],
    ]


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ([], ["Wir kamen alle am 5. Mai an. Und am 8. Juni fuhren wir."]),
        (
            ["--piece-length", "20", "--language", "de"],
            ["Wir kamen alle am 5. Mai an.", "Und am 8. Juni fuhren wir."],
        ),
        (
            ["--piece-length", "20"],
            ["Wir kamen alle am 5.", "Mai an. Und am 8.", "Juni fuhren wir."],
        ),
    ],
)
def test_the_language_and_the_length_decide_the_pieces(words, pieces, capsys):
    text = "Wir kamen alle am 5. Mai an. Und am 8. Juni fuhren wir."
    assert main(["say", text, "--model", "random", "--split-preview", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == pieces


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--history", "reset:0"], "history must be fixed, chained or reset:N with N from 1"),
        (["--retries", "none"], r"retries must be a whole number in [0, 100], got None"),
        (["--silence", "61"], "--silence must be a number in [0, 60], got 61.0"),
        (["--piece-length", "1"], "--piece-length must be a whole number in [20, 1000], got 1"),
        (["--language", "German"], "language must be a code of two or three letters"),
        (["--speaker", "Ann"], "expected NAME=VOICE, got 'Ann'"),
        (["--speaker", "Ann=low", "--voice", "high"], "leave --voice and --one-piece out"),
        (["--speaker", "Ann=low", "--one-piece"], "leave --voice and --one-piece out"),
    ],
)
def test_wrong_usage_exits_2(model, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        say(model, TEXT, *words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([TEXT, "--voice", "nobody"], "no voice 'nobody'"),
        (["Ann: Ab cd.", "--speaker", "Ann=nobody"], "no voice 'nobody'"),
        (["Tom: Ab cd.", "--speaker", "Ann=low"], "line 1: unknown speaker 'Tom'"),
        (["Ab cd. [pause:-1s]"], "bad pause '[pause:-1s]'"),
        (["[pause:1s]"], "there is nothing to say but pauses"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(model, words, message, tmp_path, capsys):
    assert say(model, *words, "-o", tmp_path / "a.wav") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minibark: ") and message in line
    assert not list(tmp_path.iterdir())


def test_one_piece_is_cut_as_suno_does(model, quick, tmp_path, capsys):
    path: Path = tmp_path / "a.wav"
    assert say(model, TEXT, "--one-piece", "--piece-length", "50", "-q", "-o", path) == 0
    first, line = capsys.readouterr().err.splitlines()
    idle = "--one-piece makes one piece, for which --retries, --piece-length means nothing"
    assert first == f"minibark: warning: {idle}"
    assert "the text has 26 tokens, of which Bark reads the first 8: the other 18 are" in line
    samples, _ = soundfile.read(path, dtype="int16")
    with pytest.warns(UserWarning, match="reads the first 8"):
        expected = quick.generate(TEXT, seed=1, max_duration_s=0.3, allow_early_stop=False)
    assert np.array_equal(samples, pcm(expected))
