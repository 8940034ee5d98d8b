"""The command line: what it writes, what it says, how it ends."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import minibark
from minibark.checkpoint.presets import preset
from minibark.checkpoint.shapes import empty_module
from minibark.checkpoint.voices import Voices
from minibark.commands.main import main
from minibark.config import STAGES

QUICK = ["--max-duration", "0.3", "--seed", "1"]


@pytest.fixture(scope="module")
def voice():
    """An output of a random Bark, long enough to be trimmed."""
    return minibark.Bark(preset("random"), device="cpu").generate_voice(
        "A voice.", max_duration_s=1.5, seed=7
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory, voice):
    """A tiny random checkpoint with two voices."""
    root = tmp_path_factory.mktemp("cli")
    (root / "voices" / "v2").mkdir(parents=True)
    voice.save(root / "voices" / "narrator.npz")
    voice.save(root / "voices" / "v2" / "en_speaker_6.npz")
    voices = Voices.from_directory(root / "voices")
    minibark.Bark(preset("random"), voices=voices, device="cpu").save(root / "model")
    return str(root / "model")


def run(*args, stdin=b""):
    """A real process: (exit code, stdout bytes, stderr text)."""
    command = [sys.executable, "-m", "minibark", *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
def test_say_writes_audio_and_tells_its_length(model, tmp_path, capsys, suffix):
    path = tmp_path / f"out.{suffix}"
    assert main(["say", "Hello.", "-o", str(path), "--model", model, *QUICK]) == 0
    audio, rate = soundfile.read(path)
    assert rate == 24_000 and audio.ndim == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    closing = shown.err.strip().splitlines()[-1]
    assert closing.startswith(f"{path}: {len(audio) / rate:.1f} s of audio in ")
    assert "RTF" in closing
    for stage in ("semantic", "coarse", "fine"):
        assert stage in shown.err and "100%" in shown.err


def test_say_is_the_python_api(model, tmp_path):
    path = tmp_path / "out.wav"
    args = ["--temperature", "0.9", "--waveform-temperature", "0.8", "--fine-temperature", "0.6"]
    args += ["--top-k", "50", "--top-p", "0.9", "--min-eos-p", "0.3", "--voice", "narrator"]
    assert main(["say", "Hello.", "-o", str(path), "--model", model, "-q", *QUICK, *args]) == 0
    expected = minibark.Bark.from_pretrained(model, device="cpu").generate(
        "Hello.",
        "narrator",
        temperature=0.9,
        waveform_temperature=0.8,
        fine_temperature=0.6,
        top_k=50,
        top_p=0.9,
        min_eos_p=0.3,
        max_duration_s=0.3,
        seed=1,
    )
    audio, _ = soundfile.read(path)
    assert np.abs(audio - expected).max() < 1e-4


def test_stdin_to_stdout_in_a_real_process(model, tmp_path):
    path = tmp_path / "out.wav"
    assert main(["say", "read me", "-o", str(path), "--model", model, "-q", *QUICK]) == 0
    code, out, err = run("say", "-", "-o", "-", "--model", model, "-q", *QUICK, stdin=b"read me\n")
    assert (code, err) == (0, "")
    assert out == path.read_bytes()
    audio, rate = soundfile.read(io.BytesIO(out))
    assert rate == 24_000 and len(audio)


def test_a_text_comes_from_a_file_or_a_pipe_without_a_dash(model, tmp_path):
    path, text = tmp_path / "out.wav", tmp_path / "text.txt"
    text.write_bytes(b"\xef\xbb\xbfread me\r\n")
    common = ["--model", model, "-q", *QUICK]
    assert main(["say", "read me", "-o", str(path), *common]) == 0
    for args, stdin in ((["-i", text], b""), ([], b"read me\n"), (["-i", "-"], b"read me")):
        assert run("say", *args, "-o", "-", *common, stdin=stdin) == (0, path.read_bytes(), "")


def test_dev_stdout_is_standard_output(model, tmp_path):
    code, out, err = run("say", "a", "-o", "/dev/stdout", "--model", model, "-q", *QUICK)
    assert (code, err) == (0, "") and out[:4] == b"RIFF"
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(b"before")
        file.flush()
        command = [sys.executable, "-m", "minibark", "say", "a", "-o", "/dev/stdout"]
        subprocess.run([*command, "--model", model, "-q", *QUICK], stdout=file, check=True)
    assert (tmp_path / "a.wav").read_bytes() == b"before" + out


@pytest.mark.thinned
@pytest.mark.parametrize(
    ("args", "stdin", "words"),
    [
        (["caf\udce9"], b"", "TEXT is not UTF-8"),
        (["-"], b"caf\xe9", "standard input is not UTF-8"),
        ([], b"", "standard input is empty"),
        (["-i", "{tmp}/latin"], b"", "latin is not UTF-8"),
        (["-i", "{tmp}/none"], b"", "No such file"),
        (["-i", "{tmp}/empty"], b"", "empty is empty"),
        (["-i", "{tmp}"], b"", "Is a directory"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(args, stdin, words, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_bytes(b" \n")
    args = [os.fsencode(arg.replace("{tmp}", str(tmp_path))) for arg in args]
    out = tmp_path / "a.wav"
    command = [sys.executable, "-m", "minibark", "say", *args, "-o", out, "--model", "random"]
    done = subprocess.run(command, input=stdin, capture_output=True)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1 and words in line and not out.exists()


def test_a_recording_is_no_voice(model, tmp_path, capsys):
    (tmp_path / "me.wav").write_bytes(b"RIFF")
    args = ["say", "a", "-o", str(tmp_path / "a.wav"), "--model", model]
    assert main([*args, "--voice", str(tmp_path / "me.wav")]) == 1
    assert "is a recording; a voice is a file of tokens" in capsys.readouterr().err


def test_names_are_listed_where_stdout_is_ascii(model, tmp_path, voice):
    (tmp_path / "v").mkdir()
    for name in ("Zéphyrine", "plain"):
        voice.save(tmp_path / "v" / f"{name}.npz")
    command = [sys.executable, "-m", "minibark", "voices", "--model", model, "--voices-dir"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, tmp_path / "v"], capture_output=True, env=environment)
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert (done.returncode, names) == (0, [b"Z\\xe9phyrine", b"plain"])


def test_a_voice_is_heard(model, tmp_path, capsys, voice):
    path = tmp_path / "preview.wav"
    for name in ("narrator", str(tmp_path / "VV.NPZ")):
        voice.save(tmp_path / "VV.NPZ")
        assert main(["voices", name, "--model", model, "-o", str(path)]) == 0
        samples, rate = soundfile.read(path)
        expected = minibark.Bark.from_pretrained(model, device="cpu").decode(voice.fine)
        assert rate == 24_000 and np.abs(samples - expected).max() < 1e-4
        assert f"what {name} sounds like" in capsys.readouterr().err


def test_main_leaves_the_environment_as_it_was(model, tmp_path):
    before = dict(os.environ)
    assert main(["say", "a", "-q", "-o", str(tmp_path / "a.wav"), "--model", model, *QUICK]) == 0
    assert dict(os.environ) == before


def test_a_saved_voice_is_a_voice_to_go_on_with(model, tmp_path, capsys):
    saved, out = str(tmp_path / "me.npz"), str(tmp_path / "a.wav")
    common = ["--model", model, "-q", "--max-duration", "1", "--seed", "3"]
    assert main(["say", "One.", "-o", out, "--save-voice", saved, *common]) == 0
    assert main(["say", "Two.", "-o", out, "--voice", saved, *common]) == 0
    assert main(["voices", saved]) == 0
    assert "a sound voice of 1.0 s" in capsys.readouterr().out


def test_random_model_says_that_it_is_noise(tmp_path, capsys):
    path = tmp_path / "out.wav"
    assert main(["say", "Hello.", "-o", str(path), "--model", "random", *QUICK]) == 0
    assert "noise" in capsys.readouterr().err
    assert soundfile.info(path).frames > 0


def test_voices_lists_and_checks(model, capsys):
    assert main(["voices", "--model", model]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["narrator", "1.5", "s"], ["v2/en_speaker_6", "1.5", "s", "English"]]
    assert main(["voices", "v2/en_speaker_6", "--model", model]) == 0
    assert "a sound voice of 1.5 s" in capsys.readouterr().out
    assert main(["voices", "v2/en_speaker_7", "--model", model]) == 1
    assert "near names: v2/en_speaker_6" in capsys.readouterr().err


def test_info_tells_the_stages(model, capsys):
    assert main(["info", model]) == 0
    out = capsys.readouterr().out
    config = preset("random")
    for stage in STAGES:
        module = empty_module(stage, getattr(config, stage))
        parameters = sum(p.numel() for p in module.parameters())
        (line,) = [line for line in out.splitlines() if line.startswith(stage)]
        assert f" {parameters:,} " in line and f" {4 * parameters:,} " in line
        assert line.endswith("float32")
    assert "129600/10048" in out and "voices 2" in out


def test_convert_narrows_and_the_result_speaks(model, tmp_path, capsys):
    small = tmp_path / "half"
    assert main(["convert", model, str(small), "--precision", "bfloat16"]) == 0
    assert "MB in" in capsys.readouterr().err
    modes = {path.stat().st_mode for path in small.iterdir() if path.is_file()}
    assert len(modes) == 1  # that of the umask
    assert main(["info", str(small)]) == 0
    assert "bfloat16" in capsys.readouterr().out
    out = str(tmp_path / "x.wav")
    assert main(["say", "Hi.", "-o", out, "--model", str(small), "-q", *QUICK]) == 0
    assert main(["convert", model, str(small)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["convert", model, str(tmp_path / "one"), "--voices", "narrator", "-q"]) == 0
    assert [p.name for p in (tmp_path / "one" / "voices").rglob("*.npz")] == ["narrator.npz"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "tiny", "x", "--voices", ""], "expected names with a comma between, got ''"),
        (["convert", "tiny", "x", "--voices", "female,"], "expected names with a comma between"),
        (["info", "tiny", "--stage", "foo=bar"], "expected one of semantic, coarse"),
    ],
)
def test_options_that_name_nothing_are_wrong_usage(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_blanks_between_names_are_no_part_of_them(tmp_path):
    folder = tmp_path / "two"
    assert main(["convert", "tiny", str(folder), "--voices", "female, male", "-q"]) == 0
    assert len(list((folder / "voices").rglob("*.npz"))) == 2


def test_a_model_without_a_name_is_none(tmp_path, monkeypatch, capsys):
    """As of a variable of the shell that is not set; not what lies in the current folder."""
    assert main(["convert", "tiny", str(tmp_path / "here"), "-q"]) == 0
    monkeypatch.chdir(tmp_path / "here")
    for words in (["info", ""], ["say", "Hi.", "--model", "", *QUICK], ["voices", "--model", ""]):
        assert main(words) == 1
        assert "no model ''" in capsys.readouterr().err
    for stage in ("coarse", "codec"):
        with pytest.raises(FileNotFoundError, match="no model ''"):
            minibark.Bark.from_pretrained("tiny", stages={stage: ""})
    assert main(["info", "."]) == 0


def test_a_batch_of_single_pieces_says_which_options_mean_nothing(tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "Hi."}')
    words = ["batch", str(tmp_path / "m.jsonl"), str(tmp_path / "out"), "--model", "random"]
    assert main([*words, "-q", "--max-duration", "0.2", "--one-piece", "--silence", "3"]) == 0
    told = "--one-piece makes one piece, for which --silence means nothing"
    assert told in capsys.readouterr().err
    assert main([*words, "-q", "--max-duration", "0.2", "--one-piece", "--again"]) == 0
    assert "means nothing" not in capsys.readouterr().err


def test_a_revision_of_what_is_not_on_the_hub_is_told_of(capsys):
    assert main(["info", "tiny", "--revision", "v2"]) == 0
    assert "tiny is not on the hub, so revision 'v2' means nothing" in capsys.readouterr().err
    assert main(["info", "tiny", "--revision", "main"]) == 0
    assert not capsys.readouterr().err


def test_convert_to_int8_and_what_info_tells_of_it(model, tmp_path, capsys):
    small, out = str(tmp_path / "int8"), tmp_path / "out.wav"
    assert main(["convert", model, small, "--precision", "int8", "-q"]) == 0
    tables = []
    for place in (model, small):
        assert main(["info", place]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        tables.append({row[0]: row for row in rows})
    before, after = tables
    for stage in ("semantic", "coarse", "fine"):
        assert after[stage][1:6] == before[stage][1:6]
        n_bytes, n_before = (int(row[stage][6].replace(",", "")) for row in (after, before))
        assert 0.25 * n_before < n_bytes < 0.3 * n_before
        assert after[stage][7:] == ["int8,", "float32"]
    assert after["codec"] == before["codec"]
    assert after["total"][1] == before["total"][1]
    for precision in ("float32", "int8", "int4"):
        args = ["say", "Hi.", "-o", str(out), "--model", small, "-q", *QUICK]
        assert main([*args, "--precision", precision]) == 0
        assert soundfile.info(out).frames > 0


def test_threads_are_as_many_as_asked(model, tmp_path):
    before = torch.get_num_threads()
    try:
        args = ["say", "Hi.", "-o", str(tmp_path / "out.wav"), "--model", model, "-q", *QUICK]
        assert main([*args, "--threads", "1"]) == 0
        assert torch.get_num_threads() == 1
        with pytest.raises(SystemExit):
            main([*args, "--threads", "0"])
    finally:
        torch.set_num_threads(before)


FAILURES = {
    "empty text": (["say", " \n "], "TEXT is empty"),
    "control characters": (["say", "\x07\x1b"], "nothing that can be read"),
    "no such folder": (["say", "a", "-o", "{tmp}/no/a.wav"], "create it first"),
    "output is a folder": (["say", "a", "-o", "{tmp}/dir.wav"], "is a folder"),
    "unknown voice": (["say", "a", "--voice", "nobody"], "no voice 'nobody'"),
    "missing voice file": (["say", "a", "--voice", "{tmp}/nobody.npz"], "no voice file"),
    "broken voice file": (["say", "a", "--voice", "{tmp}/broken.npz"], "not a readable voice"),
    "unknown device": (["say", "a", "--device", "warp"], "device 'warp'"),
    "no folder": (["convert", "tiny", "/dev/null"], "/dev/null exists and is not empty"),
    "not a model": (["say", "a", "--model", "{tmp}"], "has no config.json"),
    "unknown model": (["say", "a", "--model", "nobody/nothing", "--offline"], "nobody/nothing"),
    "nothing cached": (["voices", "--model", "no/body", "--offline"], "'tiny' ships with minibark"),
    "model is a file": (["info", "{tmp}/broken.npz"], "is a file"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_one_plain_line_and_leave_nothing(name, model, tmp_path, capsys):
    words, expected = FAILURES[name]
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    (tmp_path / "dir.wav").mkdir()
    args = [word.format(tmp=tmp_path) for word in words]
    if args[0] == "say":
        args += [] if "-o" in args else ["-o", str(tmp_path / "out.wav")]
        args += [] if "--model" in args else ["--model", model]
        args += QUICK
    assert main(args) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("minibark: ") and expected in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.npz", "dir.wav"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["say", "a", "-i", "a.txt"], "two texts"),
        (["say", "-oh no, said Bob.", "-"], "goes after --"),
        (["say", "-Hm."], "goes after --"),
        (["say", "a", "--plain-text=loud"], "--plain-text must be one of off, plain, all"),
        (["voices", "-o", "a.wav"], "needs the NAME"),
        (["voices", "male", "-o", "a.xyz"], "audio format"),
        (["sing", "a"], "invalid choice"),
        (["say", "a", "--seed", "x"], "invalid int value"),
        (["say", "a", "--seed", "-1"], "--seed must be"),
        (["say", "a", "--top-k", "-1"], "--top-k must be"),
        (["say", "a", "--top-p", "0"], "--top-p must be"),
        (["say", "a", "--temperature", "nan"], "--temperature must be"),
        (["say", "a", "--min-eos-p", "2"], "--min-eos-p must be in [0, 1]"),
        (["say", "a", "--max-duration", "0"], "--max-duration must be positive"),
        (["say", "a", "--threads", "0"], "not in [1, 1024]"),
        (["say", "a", "-o", "a.aac"], ".wav, .flac, .ogg, .opus, .mp3"),
        (["say", "a", "--save-voice", "a.wav"], ".npz"),
        (["say", "-i", "a.txt", "--raw", "-o", "./a.txt"], "-o and -i are the same file"),
        (["say", "a", "--raw", "-o", "a.npz", "--voice", "a.npz"], "-o and --voice are the same"),
        (["say", "a", "--raw", "-o", "a.npz", "--save-voice", "a.npz"], "are the same file"),
        (["batch", "clips/errors.jsonl", "clips"], "give the manifest another place"),
        (["batch", "clips/one.json", "./clips"], "give the manifest another place"),
        (
            ["detect", "--import-classifier", "a.safetensors", "a.safetensors"],
            "OUT and --import-classifier are the same file",
        ),
        (["say", "a", "--precision", "int3"], "invalid choice"),
        (["say", "a", "--stage", "coarse"], "STAGE=PLACE"),
    ],
)
def test_wrong_usage_exits_2(args, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["say"], ["voices"], ["convert"], ["info"]])
def test_help(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*args, "--help"])
    assert stop.value.code == 0
    assert "usage: minibark" in capsys.readouterr().out


def test_long_text_warns_in_one_line(model, tmp_path, capsys):
    args = [
        "say",
        "ab " * 200,
        "--one-piece",
        "-o",
        str(tmp_path / "o.wav"),
        "--model",
        model,
        "-q",
        *QUICK,
    ]
    assert main(args) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "minibark: warning: the text has 400 tokens, of which Bark reads the first 256"
    )


def test_bad_stdin_is_refused(model):
    code, out, err = run("say", "-", "-o", "-", "--model", model, *QUICK, stdin=b"\xff\xfe")
    assert (code, out) == (1, b"")
    assert "not UTF-8" in err and len(err.splitlines()) == 1


def test_a_closed_pipe_is_no_traceback(model):
    command = f"{sys.executable} -m minibark voices --model {model} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_full_disk_is_one_line_and_leaves_nothing(model, tmp_path):
    # Files may not grow over 1 KiB in that process: a stand-in for a full disk.
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from minibark.commands.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    args = ["say", "a", "-o", str(path), "--model", model, "-q", *QUICK]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("minibark: ")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_leaves_nothing(model, tmp_path):
    path = tmp_path / "out.wav"
    process = subprocess.Popen(
        [sys.executable, "-m", "minibark", "say", "a", "-o", path, "--model", model, "--seed", "1"],
        stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
    )
    seen = b""
    deadline = time.monotonic() + 60
    while b"semantic" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read1(4096)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().decode()
    assert process.wait(timeout=60) == 1
    assert rest.strip().splitlines()[-1] == "minibark: interrupted; nothing was written"
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())


def test_random_is_a_name_in_every_command(tmp_path, capsys):
    assert main(["info", "random"]) == 0
    told = capsys.readouterr().out
    assert "voices 0, 24,000 Hz" in told and "random" not in told
    assert main(["voices", "--model", "random"]) == 0
    assert capsys.readouterr().out == "random comes with no voices\n"
    assert main(["convert", "random", str(tmp_path / "copy"), "-q"]) == 0
    assert main(["info", str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out == told
