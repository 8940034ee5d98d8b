"""`minibark batch`: each clip is what it is alone, and what is done stays done."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import threading
import time
import unicodedata
from pathlib import Path
from random import Random

import killed_jobs
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import minibark
from minibark.audio import encode_audio
from minibark.commands.main import main
from minibark.decoding import CachedDecoder
from minibark.speech.bulk import ChangedError, Job, run
from minibark.speech.folder import ClipFolder, FolderError
from minibark.speech.manifest import (
    BadLine,
    Line,
    ManifestError,
    folded,
    read_manifest,
    seed_of,
    share_of,
)

LONG = "A hut on the hill. No one was in it. We went in slowly."
TEXTS = {
    "short": {"text": "Hi.", "seed": 1},
    "other": {"text": "A hut.", "seed": 2, "voice": "made"},
    "hot": {"text": "On the hill.", "seed": 3, "temperature": 1.2, "top_k": 9},
    "cool": {"text": "In the hut.", "seed": 4, "max_duration_s": 0.1, "min_eos_p": None},
    "same": {"text": "Hi.", "seed": 1},
    "mine": {"text": "No one there."},
    "yours": {"text": "No one there."},
    "long": {"text": LONG, "seed": 5, "voice": "made", "retries": 1},
    "pause": {"text": "Hi. [pause:100ms]", "seed": 6, "silence_s": 0.1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return killed_jobs.save_model(tmp_path_factory.mktemp("bulk"))


@pytest.fixture(scope="module")
def bark(model):
    return minibark.Bark.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def nursery():
    with killed_jobs.Nursery() as nursery:
        yield nursery


def write(path, lines):
    """A manifest: objects by id, or lines as they are."""
    if isinstance(lines, dict):
        lines = [json.dumps({"id": name, **line}) for name, line in lines.items()]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def records(out):
    found = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")]
    return {record["id"]: record for record in found}


def errors(out):
    path = out / "errors.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def alone(bark, record):
    """The audio that a record says how to make."""
    knobs = {**record["options"], "seed": record["seed"]}
    assert knobs.pop("one_piece") is False
    plan = {name: knobs.pop(name) for name in vars(minibark.LongOptions())}
    if record["pieces"] == 1 and "[pause" not in record["text"]:
        return bark.generate(record["text"], record["voice"], **knobs)
    return bark.generate_long(record["text"], record["voice"], **knobs, **plan)


# ---- what a clip is


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_each_clip_is_what_it_is_alone(bark, tmp_path, suffix):
    manifest, out = write(tmp_path / "m.jsonl", TEXTS), tmp_path / "out"
    told = []
    summary = run(bark, manifest, out, rows=3, audio_format=suffix, on_clip=told.append)
    made = records(out)
    assert summary.n_made == len(TEXTS) == len(told) and summary.n_bad == 0
    assert made == {record["id"]: record for record in told} and list(made) != list(TEXTS)
    for name, record in made.items():
        audio = alone(bark, record)
        content = (out / record["file"]).read_bytes()
        assert record["file"] == f"{name}.{suffix}"
        assert content == encode_audio(audio, bark.sample_rate, f".{suffix}"), name
        assert record["seconds"] == pytest.approx(len(audio) / bark.sample_rate, abs=1e-3)
        assert record["first_seed"] == TEXTS[name].get("seed", record["first_seed"])
        assert record["precision"] == "float32" and record["wall_s"] > 0
    assert made["long"]["pieces"] > 1 and made["pause"]["pieces"] == 1
    assert made["same"]["seed"] == made["short"]["seed"] == 1
    assert made["mine"]["first_seed"] != made["yours"]["first_seed"]
    assert summary.audio_s == pytest.approx(sum(r["seconds"] for r in made.values()), abs=0.01)
    # The rest is what it takes to write them.
    assert 0.5 * summary.wall_s < sum(r["wall_s"] for r in made.values()) < summary.wall_s + 0.01


def test_a_trained_model_reads_its_manifest(tmp_path):
    bark = minibark.Bark.from_pretrained("tiny", device="cpu")
    lines = {"one": {"text": "Hello."}, "two": {"text": "A dog.", "voice": "male"}}
    options = minibark.Options(seed=4)
    run(bark, write(tmp_path / "m", lines), tmp_path / "out", voice="female", options=options)
    made = records(tmp_path / "out")
    assert [made[name]["voice"] for name in lines] == ["female", "male"]
    for name, record in made.items():
        assert (record["tries"], record["fault"]) == (1, "")
        assert record["seed"] == record["first_seed"] == seed_of(name, 4)
        samples, _ = soundfile.read(tmp_path / "out" / record["file"], dtype="int16")
        expected = bark.generate(record["text"], record["voice"], seed=record["seed"])
        assert np.abs(samples - np.rint(expected * 32767)).max() <= 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_groups_and_other_runs_give_the_same_clips(bark, tmp_path):
    lines = {f"c{i}": {"text": " ".join(["hut"] * (1 + i % 4))} for i in range(5)}
    back = dict(reversed(lines.items()))
    sounds = []
    for n, (some, rows, seed) in enumerate(
        [(lines, 1, None), (back, 4, 0), ({"c3": lines["c3"]}, 2, 0), (lines, 2, 1)]
    ):
        out = tmp_path / str(n)
        options = minibark.Options(seed=seed)
        run(bark, write(tmp_path / "m", some), out, rows=rows, options=options)
        sounds.append({path.stem: path.read_bytes() for path in out.glob("*.wav")})
    assert sounds[0] == sounds[1] and sounds[2] == {"c3": sounds[0]["c3"]}
    assert all(sounds[3][name] != sounds[0][name] for name in lines)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_goes_wrong_is_made_again_unless_the_line_gives_the_seed(bark, tmp_path):
    lines = {f"c{i}": {"text": "a " * (i + 1)} for i in range(10)}
    lines |= {f"s{i}": {"text": "a " * (i + 1), "seed": i} for i in range(6)}
    summary = run(bark, write(tmp_path / "m", lines), tmp_path / "out")
    made = records(tmp_path / "out")
    again = [r for r in made.values() if r["tries"] > 1]
    assert again and all(record["id"][0] == "c" for record in again)
    cured = [record for record in again if not record["fault"]]
    assert cured and all(record["seed"] != record["first_seed"] for record in cured)
    assert any(record["fault"] for record in made.values() if record["id"][0] == "s")
    assert {r["tries"] for r in made.values() if r["fault"] and r["id"][0] == "c"} <= {3}
    assert summary.n_doubtful == sum(bool(record["fault"]) for record in made.values())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_text_comes_back_from_its_record(bark, tmp_path):
    text = 'Zażółć \ud800 \x1b \u2028 "hut"'
    manifest = write(tmp_path / "m", {"ąę 1": {"text": text, "seed": 1, "max_duration_s": 0.1}})
    run(bark, manifest, tmp_path / "out")
    (record,) = records(tmp_path / "out").values()
    assert record["text"] == text and "cannot be read" in record["warnings"][0]
    assert run(bark, manifest, tmp_path / "out").n_kept == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_piece_cuts_a_long_text_and_says_so(bark, tmp_path):
    lines = {"long": {"text": LONG, "seed": 5}}
    run(bark, write(tmp_path / "m", lines), tmp_path / "out", one_piece=True)
    (record,) = records(tmp_path / "out").values()
    expected = encode_audio(bark.generate(LONG, seed=5), bark.sample_rate)
    assert (tmp_path / "out" / "long.wav").read_bytes() == expected
    n = len(bark.tokenizer.encode(LONG))
    assert record["warnings"] == [f"{n - 32} of the {n} tokens of the text are cut off"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_clip_that_ends_makes_room_for_the_next(bark, tmp_path, monkeypatch):
    lines = {f"c{i}": {"text": "hut " * (1 + i % 5), "seed": i} for i in range(12)}
    run(bark, write(tmp_path / "m", lines), tmp_path / "alone", rows=1)
    n_rows, joined = [], []

    class Counting(CachedDecoder):
        def join(self, prompts, ids):
            joined.extend(prompts)
            return super().join(prompts, ids)

        def prefill(self, prompts, ids):
            logits = super().prefill(prompts, ids)
            del joined[len(joined) - len(prompts) :]
            return logits

        def decode_one(self, tokens, ids):
            n_rows.append(len(tokens))
            return super().decode_one(tokens, ids)

    monkeypatch.setattr(bark.pipeline, "new_decoder", lambda model, n, _: Counting(model, n))
    summary = run(bark, tmp_path / "m", tmp_path / "joined", rows=3)
    assert summary.n_made == 12 and max(n_rows) == 3 and len(joined) >= 10
    for path in (tmp_path / "alone").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "joined" / path.name).read_bytes()


@pytest.mark.filterwarnings("ignore:the text had not ended:UserWarning")
def test_where_memory_runs_out_fewer_clips_go_together(bark, tmp_path, monkeypatch):
    lines = {f"c{i}": {"text": "hut " * (1 + i % 3), "seed": i} for i in range(6)}
    run(bark, write(tmp_path / "m", lines), tmp_path / "whole", rows=1)

    class Cramped(CachedDecoder):
        most = 2

        def decode_one(self, tokens, ids):
            if len(tokens) > self.most:
                torch.empty(1 << 58)
            return super().decode_one(tokens, ids)

    monkeypatch.setattr(bark.pipeline, "new_decoder", lambda model, n, _: Cramped(model, n))
    with pytest.warns(UserWarning, match="memory ran out .* going on with 2 rows at once"):
        assert run(bark, tmp_path / "m", tmp_path / "out", rows=4).n_made == 6
    for path in (tmp_path / "whole").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    monkeypatch.setattr(Cramped, "most", 0)
    with pytest.warns(UserWarning, match="going on with 1 row at once"):
        summary = run(bark, tmp_path / "m", tmp_path / "none", rows=2)
    assert (summary.n_made, summary.n_bad) == (0, 6)
    assert all("memory" in one["reason"] for one in errors(tmp_path / "none"))


# ---- what is done, and what would be otherwise


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_second_run_makes_what_is_missing(bark, tmp_path):
    out, manifest = tmp_path / "out", write(tmp_path / "m", TEXTS)
    run(bark, manifest, out)
    whole = killed_jobs.clips(out)
    (out / "hot.json").unlink()
    (out / "mine.wav").unlink()
    (out / ".mine.wav.0123abcd.part").write_bytes(b"half")
    (out / ".x.part").mkdir()
    (out / "errors.jsonl").write_text("of a run before")
    told = []
    summary = run(bark, manifest, out, on_clip=told.append)
    assert {record["id"] for record in told} == {"hot", "mine"}
    assert (summary.n_made, summary.n_kept) == (2, len(TEXTS) - 2)
    for name, clip in killed_jobs.clips(out).items():
        assert clip[3] == whole[name][3]
        assert (clip == whole[name]) == (name not in ("hot", "mine"))
    killed_jobs.assert_complete(out, list(TEXTS))
    assert run(bark, manifest, out).n_made == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("line", "settings", "words"),
    [
        ({"text": "Ho."}, {}, "text was 'Hi.', is 'Ho.'"),
        ({"voice": "made"}, {}, "voice was None, is 'made'"),
        ({"seed": 8}, {}, "seed was 7, is 8"),
        ({"top_k": 3}, {}, "top_k was None, is 3"),
        ({}, {"options": minibark.Options(fine_temperature=0.4)}, "temperature was 0.5, is 0.4"),
        ({}, {"plan": minibark.LongOptions(goal=50)}, "goal was None, is 50"),
        ({}, {"audio_format": "flac"}, "file was 'a.wav', is 'a.flac'"),
        ({}, {"one_piece": True}, "one_piece was False, is True"),
    ],
)
def test_a_change_of_what_is_done_is_refused_and_named(bark, tmp_path, line, settings, words):
    lines = {"a": {"text": "Hi.", "seed": 7}, "b": {"text": "Hut.", "seed": 7, "top_k": 3}}
    if settings:
        del lines["b"]
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    run(bark, manifest, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    lines["a"] |= line
    write(manifest, lines)
    with pytest.raises(ChangedError, match=re.escape(words)) as caught:
        run(bark, manifest, out, **settings)
    assert "'a'" in str(caught.value) and "'b'" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    told = []
    run(bark, manifest, out, again=True, on_clip=told.append, **settings)
    assert [record["id"] for record in told] == ["a"]
    assert len(os.listdir(out)) == len(before)
    assert run(bark, manifest, out, **settings).n_made == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_model_voice_or_precision_is_refused(bark, model, tmp_path):
    lines = {"a": {"text": "Hi.", "voice": str(tmp_path / "v.npz")}}
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    bark.load_voice("made").save(tmp_path / "v.npz")
    run(bark, manifest, out)
    # The same weights elsewhere are the same model, which is no matter of its name.
    bark.save(tmp_path / "copy")
    same = minibark.Bark.from_pretrained(tmp_path / "copy", device="cpu")
    assert same.checkpoint().checksum() == bark.checkpoint().checksum()
    assert run(same, manifest, out).n_kept == 1
    other = minibark.Bark(killed_jobs.CONFIG, device="cpu", seed=4)
    with pytest.raises(ChangedError, match=r"model was '.*', is 'random'"):
        run(other, manifest, out)
    float16 = minibark.Bark.from_pretrained(model, device="cpu", precision="bfloat16")
    with pytest.raises(ChangedError, match="precision was 'float32', is 'bfloat16'"):
        run(float16, manifest, out)
    voice = bark.load_voice("made")
    minibark.Voice(voice.semantic, voice.coarse, voice.fine.flip(1)).save(tmp_path / "v.npz")
    with pytest.raises(ChangedError, match=r"voice_checksum was '.*', is '"):
        run(bark, manifest, out)


@pytest.mark.parametrize("part", ["weight", "number", "vocabulary"])
def test_a_checksum_is_of_all_that_decides_what_is_said(bark, part):
    checkpoint = bark.checkpoint()
    before = checkpoint.checksum()
    if part == "weight":
        states = {stage: dict(checkpoint.states[stage]) for stage in checkpoint.states}
        name, tensor = next(iter(states["codec"].items()))
        states["codec"][name] = tensor.clone()
        states["codec"][name].view(-1)[-1] += 1e-3
        changed = {"states": states}
    elif part == "number":
        generation = minibark.GenerationConfig(
            **{**vars(checkpoint.config.generation), "max_new_tokens": 15}
        )
        changed = {
            "config": minibark.BarkConfig(**{**vars(checkpoint.config), "generation": generation})
        }
    else:
        vocabulary = list(checkpoint.tokenizer.vocab)
        vocabulary[-1], vocabulary[-2] = vocabulary[-2:]
        changed = {"tokenizer": minibark.Tokenizer(vocabulary)}
    assert type(checkpoint)(**{**vars(checkpoint), **changed}).checksum() != before


def test_a_folder_of_other_things_is_left_alone(bark, tmp_path):
    out, manifest = tmp_path / "out", write(tmp_path / "m", {"a": {"text": "Hi.", "seed": 5}})
    out.mkdir()
    (out / "a.wav").write_bytes(b"mine")
    with pytest.raises(FolderError, match=r"no \.minibark-batch, .* \('a.wav'\)"):
        run(bark, manifest, out)
    assert os.listdir(out) == ["a.wav"] and (out / "a.wav").read_bytes() == b"mine"
    with pytest.raises(FolderError, match="is no folder"):
        run(bark, manifest, manifest)
    with pytest.raises(FileNotFoundError, match="create it first"):
        run(bark, manifest, tmp_path / "no" / "out")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_folder_of_another_job_is_refused(bark, tmp_path):
    out = tmp_path / "out"
    run(bark, write(tmp_path / "m", {"a": {"text": "Hi.", "seed": 5}}), out)
    lines = write(tmp_path / "m", {"b": {"text": "Hi.", "seed": 5}})
    with pytest.raises(ChangedError, match=r"has 1 clip that the manifest does not name \('a'\)"):
        run(bark, lines, out)
    with open(lines, "a") as file:  # which may have been that of the clip that is there
        file.write('{"id": "a", "text": Hi."}\n')
    done = run(bark, lines, out)
    assert (done.n_made, done.n_bad) == (1, 1)
    assert set(records(out)) == {"a", "b"}
    (bad,) = (out / "errors.jsonl").read_text().splitlines()
    assert "it is not JSON" in bad
    (out / "b.json").write_text("[]")
    with pytest.raises(FolderError, match=r"b\.json is not the record of a clip"):
        run(bark, lines, out, again=True)


def test_one_job_at_a_time_works_in_a_folder(bark, tmp_path):
    manifest = write(tmp_path / "m", {"a": {"text": "Hi.", "seed": 5}})
    with Job(bark, manifest, tmp_path / "out") as job:
        assert job.n_todo == 1
        with pytest.raises(FolderError, match="another batch is at work"):
            Job(bark, manifest, tmp_path / "out")
    with Job(bark, manifest, tmp_path / "out") as job:
        assert len(list(job.run())) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sound_that_was_cut_off_is_made_again(bark, tmp_path):
    lines = {name: {"text": "Hi.", "seed": 5, "max_duration_s": 0.1} for name in "abcd"}
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    run(bark, manifest, out)
    sound = (out / "a.wav").read_bytes()
    for name, content in records(out).items():
        assert content["bytes"] == len(sound)
        assert content["sha256"] == hashlib.sha256((out / f"{name}.wav").read_bytes()).hexdigest()
    (out / "b.wav").write_bytes(b"")
    (out / "c.wav").write_bytes(sound[:-1])
    older = records(out)["d"]
    del older["bytes"], older["sha256"]
    (out / "d.json").write_text(json.dumps(older))
    (out / "d.wav").write_bytes(sound[:-1])  # which no older record could tell
    told = []
    assert run(bark, manifest, out, on_clip=told.append).n_kept == 2
    assert {record["id"] for record in told} == {"b", "c"}
    assert all((out / f"{name}.wav").read_bytes() == sound for name in "abc")


@pytest.mark.filterwarnings("ignore:the text had not ended:UserWarning")
def test_clips_whose_voice_has_gone_stay_and_other_jobs_are_refused_all_the_same(bark, tmp_path):
    place = tmp_path / "v.npz"
    line = {"text": "Hi.", "voice": str(place), "seed": 5, "max_duration_s": 0.1}
    lines = {"a": line, "b": line, "c": line}
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    bark.load_voice("made").save(place)
    run(bark, manifest, out)
    place.rename(tmp_path / "moved.npz")
    (out / "c.json").unlink()
    with pytest.warns(UserWarning, match="cannot be read; 2 clips done with it") as caught:
        summary = run(bark, manifest, out)
    assert sum("cannot be read" in str(one.message) for one in caught) == 1
    assert (summary.n_kept, summary.n_made, summary.n_bad) == (2, 0, 1)
    assert [one["id"] for one in errors(out)] == ["c"]
    with pytest.raises(ChangedError, match=re.escape("text was 'Hi.', is 'Ho.'")):
        run(bark, write(tmp_path / "m", {**lines, "a": {**line, "text": "Ho."}}), out)
    with pytest.raises(ChangedError, match=r"voice was '.*', is 'gone'"):
        run(bark, write(tmp_path / "m", {**lines, "a": {**line, "voice": "gone"}}), out)
    bad = write(tmp_path / "m", {name: {"text": "Hi.", "txt": 1} for name in lines})
    assert run(bark, bad, out).n_bad == 3
    other = minibark.Bark(killed_jobs.CONFIG, device="cpu", seed=4)
    for manifest in (bad, write(tmp_path / "m2", lines)):
        with pytest.raises(ChangedError, match=r"2 clips .*model was '.*', is 'random'"):
            run(other, manifest, out)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shards_that_were_copied_without_the_mark_are_known_by_their_records(bark, tmp_path):
    lines = {f"c{i}": {"text": "a hut", "max_duration_s": 0.1} for i in range(6)}
    manifest, whole = write(tmp_path / "m", lines), tmp_path / "whole"
    whole.mkdir()
    for i in (1, 2):
        run(bark, manifest, tmp_path / "part", shard=(i, 2), again=True)
    for path in (tmp_path / "part").glob("[!.]*"):
        shutil.copy(path, whole)
    (whole / "mine.txt").touch()
    with pytest.raises(FolderError, match=r"no \.minibark-batch, .* \('mine.txt'\).*'cp -r PART"):
        run(bark, manifest, whole)
    (whole / "mine.txt").unlink()
    assert run(bark, manifest, whole).n_kept == 6


# ---- bad lines


BAD = {
    "not json": "it is not JSON (Expecting value at character 1)",
    "[1, 2]": 'it must be an object such as {"id": "a", "text": "A."}, got an array',
    "null": "got null",
    '{"text": "a"}': "it has no id",
    '{"id": 7, "text": "a"}': 'its id must be a string such as "7", got a number',
    '{"id": "x/y", "text": "a"}': "its id 'x/y' has /",
    '{"id": "x\\\\y", "text": "a"}': "has \\",
    '{"id": "..", "text": "a"}': "begins or ends with a dot",
    '{"id": "", "text": "a"}': "is empty",
    '{"id": "a\\u0000b", "text": "a"}': "do not print",
    json.dumps({"id": "n" * 201, "text": "a"}): "more than 200 bytes",
    '{"id": "GOOD", "text": "a"}': "the same file as that of line 1",
    '{"id": "good", "text": "a"}': "the same file as that of line 1",
    '{"id": "k1", "txt": "a"}': "unknown key 'txt'; did you mean text?",
    '{"id": "k2", "text": "a", "temprature": 1}': "did you mean temperature?",
    '{"id": "k3", "text": "a", "id": "k4"}': "it has 'id' twice",
    '{"id": "t1"}': "its text must be a string of at least one word, got null or nothing",
    '{"id": "t2", "text": " "}': "got ' '",
    '{"id": "t3", "text": "\\u0007"}': "nothing that can be read",
    '{"id": "t4", "text": "... [pause:90s]"}': "60",
    '{"id": "o1", "text": "a", "temperature": -1}': "temperature must be 0 (greedy) or a positive",
    '{"id": "o2", "text": "a", "temperature": NaN}': "temperature must be",
    '{"id": "o3", "text": "a", "seed": "x"}': "seed must be a whole number",
    '{"id": "o4", "text": "a", "retries": null}': "must not be null",
    '{"id": "o5", "text": "a", "max_coarse_history": 5000, "seed": 1}': "max_coarse_history",
    '{"id": "v1", "text": "a", "voice": "mad"}': "near names: made",
    '{"id": "v2", "text": "a", "voice": "no.npz"}': "no voice file at no.npz",
    '{"id": "v3", "text": "a", "voice": ["made"]}': "its voice must be a name",
    '{"id": "Con", "text": "a"}': "its id 'Con' is a device of Windows",
    '{"id": "lpt1.x", "text": "a"}': "is a device of Windows",
    '{"id": "p1", "text": "a", "piece_length": 50}': "did you mean goal?",
    '{"id": "p2", "text": "a", "plain-text": "all"}': "did you mean normalize?",
    '{"id": "o6", "text": "a", "temperature": 1' + "0" * 350 + "}": "temperature must be",
    '{"id": "n1", "text": "a", "seed": ' + "1" * 5000 + "}": "it has a number of 5000 digits",
    "[" * 100_000: "nested too deeply",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_lines_are_told_and_the_rest_goes_on(model, tmp_path, capsys):
    good = {"text": "Hi.", "seed": 5, "max_duration_s": 0.1}
    lines = [json.dumps({"id": "good", **good}), "", *BAD, json.dumps({"id": "last", **good})]
    out, manifest = tmp_path / "out", write(tmp_path / "m.jsonl", lines)
    content = manifest.read_bytes()
    manifest.write_bytes(b"\xef\xbb\xbf" + content + b'{"id": "l", "text": "caf\xe9"}\n' + b"\r\n")
    words = ["batch", str(manifest), str(out), "--model", str(model)]
    for _ in range(2):
        assert main(words) == 1
        told = errors(out)
        by_line = {one["line"]: one["reason"] for one in told}
        assert len(by_line) == len(told) == len(BAD) + 1
        for number, expected in enumerate(BAD.values(), start=3):
            assert expected in by_line[number]
        assert "is not UTF-8" in by_line[len(lines) + 1]
        assert set(records(out)) == {"good", "last"}
        shown = capsys.readouterr().err
        assert shown.splitlines()[-1].startswith(f"minibark: {len(BAD) + 1} lines without a clip")
        assert "Traceback" not in shown
    assert f"{out}: 0 clips made; 2 done before" in shown
    write(manifest, [lines[0], lines[-1]])
    assert main([*words, "-q"]) == 0
    assert not (out / "errors.jsonl").exists() and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b"\x1f\x8b\x08\x00", "is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(content, words, model, tmp_path, capsys):
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    assert main(["batch", str(tmp_path / "m"), str(tmp_path / "out"), "--model", str(model)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("minibark: ") and words in line


def test_a_row_that_fails_takes_no_other_with_it(bark, tmp_path):
    lines = {f"c{i}": {"text": text} for i, text in enumerate(["a hut", "a quay", "on it", "no"])}
    broken = minibark.Bark(killed_jobs.CONFIG, device="cpu", seed=3)
    table = broken.model("semantic").transformer.wte.weight
    with torch.inference_mode():
        first = bark.tokenizer.encode("quay")[0]  # of no other text
        table[first + killed_jobs.CONFIG.generation.text_encoding_offset] = torch.nan
    options = minibark.Options(max_duration_s=0.1)
    summary = run(broken, write(tmp_path / "m", lines), tmp_path / "out", options=options)
    assert (summary.n_made, summary.n_bad) == (3, 1)
    (told,) = errors(tmp_path / "out")
    assert (told["line"], told["id"]) == (2, "c1") and "NaN" in told["reason"]
    made = records(tmp_path / "out")
    sound = encode_audio(alone(bark, made["c0"]), bark.sample_rate)
    assert (tmp_path / "out" / "c0.wav").read_bytes() == sound


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.text(max_size=12).map(lambda name: json.dumps({"id": name, "text": "a"}).encode()),
            st.text("aAéÉe\u0301ßs.ﬁ/ ", max_size=4).map(
                lambda name: json.dumps({"id": name, "text": "a"}, ensure_ascii=False).encode()
            ),
            st.dictionaries(
                st.sampled_from(["id", "text", "voice", "seed", "top_k", "goal", "x"]),
                st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            ).map(lambda line: json.dumps(line).encode()),
        ),
        max_size=6,
    )
)
@example([b'{"id": "\\ud800", "text": "a"}', b'{"id": "a", "text": "\\ud800 a"}'])
def test_whatever_is_in_a_manifest_a_line_is_good_or_told(tmp_path_factory, lines):
    place = tmp_path_factory.getbasetemp() / "any.jsonl"
    place.write_bytes(b"\n".join(lines))
    try:
        found = list(read_manifest(place))
    except ManifestError as error:
        assert "is empty" in str(error) and not b"".join(lines).strip()
        return
    assert [one.number for one in found] == sorted({one.number for one in found})
    good = [one for one in found if isinstance(one, Line)]
    for one in good:
        assert Path("out", one.id).parent == Path("out") and one.id not in (".", "..")
        assert one.text.strip() and isinstance(one.options.seed, int)
        one.id.encode("utf-8")
    names = [unicodedata.normalize("NFC", one.id).lower() for one in good]
    assert len(set(names)) == len(names)
    assert all(one.reason.isprintable() for one in found if isinstance(one, BadLine))


# ---- shards


@given(st.text(min_size=1), st.integers(1, 9))
def test_each_id_is_one_machine_s(name, n):
    share = share_of(name, n)
    assert 1 <= share <= n and share_of(name, 1) == 1
    assert share_of(name.casefold(), n) == share_of(folded(name), n) == share


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shards_make_the_whole_between_them(bark, tmp_path):
    lines = [json.dumps({"id": f"c{i}", "text": "a hut", "max_duration_s": 0.1}) for i in range(9)]
    manifest = write(tmp_path / "m", [*lines, *["bad"] * 8])
    run(bark, manifest, tmp_path / "whole")
    found, told = {}, []
    for i in (1, 2, 3):
        out = tmp_path / f"part {i}"
        run(bark, manifest, out, shard=(i, 3))
        part = {path.name: path.read_bytes() for path in out.glob("*.wav")}
        assert part and not found.keys() & part.keys()
        found |= part
        told += [one["line"] for one in errors(out)]
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.wav")}
    assert sorted(told) == [one["line"] for one in errors(tmp_path / "whole")] == [*range(10, 18)]


# ---- ends of all kinds


def test_killed_at_any_moment_nothing_is_lost_or_made_twice(nursery, model, tmp_path):
    rng = Random(0)
    manifest, out = tmp_path / "m", tmp_path / "out"
    ids = killed_jobs.write_manifest(manifest, 14, rng)
    words = ["batch", manifest, out, "--model", model, "--rows", 2, "-q"]
    n_killed = sum(killed_jobs.trial(nursery, words, out, rng, 0.4) for _ in range(5))
    with nursery.running(*words):
        pass
    assert nursery.status == 0 and n_killed >= 2
    killed_jobs.assert_complete(out, ids)
    bark = minibark.Bark.from_pretrained(model, device="cpu")
    assert run(bark, manifest, out, rows=2).n_kept == len(ids)


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(nursery, model, tmp_path):
    short = {"text": "a", "max_duration_s": 0.1, "allow_early_stop": False}
    lines = {f"c{i}": short for i in range(5)}
    lines["big"] = {"text": f"{LONG} [pause:9s]", "max_duration_s": 0.1}
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    words = ["batch", manifest, out, "--model", model, "--rows", "1", "-q"]
    # Files may not grow over 2 KiB in that process: a stand-in for a full disk.
    with nursery.running(*words, stderr=tmp_path / "told", limit=2048):
        pass
    (line,) = (tmp_path / "told").read_text().splitlines()
    assert nursery.status == 1
    assert line.startswith(
        f"minibark: {out}/big.wav cannot be written (File too large); what is done"
    )
    assert not list(out.glob(".*.part")) and "big" not in records(out)
    before = killed_jobs.clips(out)
    assert main([*map(str, words)]) == 0
    assert before.items() <= killed_jobs.clips(out).items()
    killed_jobs.assert_complete(out, list(lines))


def test_only_a_full_disk_asks_for_room(bark, model, tmp_path, capsys):
    out, manifest = tmp_path / "out", write(tmp_path / "m", ["bad"])
    out.mkdir()
    (out / ".minibark-batch").touch()
    (out / "errors.jsonl").symlink_to("/dev/full")
    assert main(["batch", str(manifest), str(out), "--model", str(model)]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "/dev/full cannot be written (No space left on device)" in told
    assert "make room there" in told
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with pytest.raises(OSError, match=r"new/\.minibark-batch cannot be .*: mend that, and run"):
            ClipFolder(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_reader_of_the_bar_who_leaves_does_not_end_the_job(nursery, model, tmp_path):
    lines = {f"c{i}": {"text": "a hut on a hill"} for i in range(12)}
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    os.mkfifo(tmp_path / "told")
    words = ["batch", manifest, out, "--model", model, "--rows", "1"]
    # It is held open, else the process waits for a reader before the nursery can tell its number.
    reader = os.open(tmp_path / "told", os.O_RDONLY | os.O_NONBLOCK)
    with nursery.running(*words, stderr=tmp_path / "told"):
        deadline = time.monotonic() + 60
        while not list(out.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert b"clips/s" in os.read(reader, 10_000)
        os.close(reader)
    assert nursery.status == 0
    killed_jobs.assert_complete(out, list(lines))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_manifest_that_is_a_pipe_is_read_once(model, tmp_path, monkeypatch):
    lines = {f"c{i}": {"text": "hut", "max_duration_s": 0.1} for i in range(4)}
    manifest, pipe = write(tmp_path / "m", lines), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(manifest.read_bytes()), daemon=True)
    writer.start()
    assert main(["batch", str(pipe), str(tmp_path / "a"), "--model", str(model), "-q"]) == 0
    writer.join(10)
    with manifest.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["batch", "-", str(tmp_path / "b"), "--model", str(model), "-q"]) == 0
    for out in (tmp_path / "a", tmp_path / "b"):
        killed_jobs.assert_complete(out, list(lines))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"voice": minibark.Voice([1], [[1], [1]], [[1]] * 8)}, "path of an .npz file, not Voice"),
        ({"options": {"seed": 1}}, "options must be Options, not dict"),
        ({"options": minibark.Options(seed=torch.Generator())}, "not a stream"),
        ({"plan": minibark.Options()}, "plan must be LongOptions"),
        ({"shard": "1/2"}, "two whole numbers"),
        ({"shard": (1.0, 2)}, "two whole numbers"),
        ({"shard": (3, 2)}, "i from 1 to n, got 3/2"),
        ({"rows": "4"}, "rows must be a positive whole number, got '4'"),
        ({"rows": 0}, "rows must be a positive"),
        ({"audio_format": None}, "the format must be one of"),
    ],
)
def test_what_is_wrong_in_python_is_told_before_the_folder_is_begun(
    bark, tmp_path, settings, words
):
    manifest = write(tmp_path / "m", {"a": {"text": "Hi."}})
    with pytest.raises(ValueError, match=re.escape(words)):
        Job(bark, manifest, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:the text had not ended:UserWarning")
def test_pieces_go_together_by_rows_and_memory_that_runs_out_is_told(bark, tmp_path, monkeypatch):
    text, seen = " ".join(["It is a hut on the hill, no."] * 12), []
    lines = {"long": {"text": text, "voice": "made", "retries": 0, "max_duration_s": 0.1}}

    class Cramped(CachedDecoder):
        most = 100

        def decode_one(self, tokens, ids):
            seen.append(len(tokens))
            if len(tokens) > self.most:
                torch.empty(1 << 58)
            return super().decode_one(tokens, ids)

    monkeypatch.setattr(bark.pipeline, "new_decoder", lambda model, n, _: Cramped(model, n))
    manifest = write(tmp_path / "m", lines)
    assert run(bark, manifest, tmp_path / "a", rows=12).n_made == 1
    assert max(seen) == records(tmp_path / "a")["long"]["pieces"] == 12
    monkeypatch.setattr(Cramped, "most", 3)
    with pytest.warns(UserWarning, match=r"memory ran out .* going on with 3 rows at once"):
        assert run(bark, manifest, tmp_path / "b", rows=12).n_made == 1


def test_ctrl_c_tells_how_far_it_came(nursery, model, tmp_path):
    lines = {f"c{i}": {"text": "a hut on a hill"} for i in range(400)}
    out, manifest = tmp_path / "out", write(tmp_path / "m", lines)
    words = ["batch", manifest, out, "--model", model, "--rows", "1"]
    deadline = time.monotonic() + 60
    with nursery.running(*words, stderr=tmp_path / "told") as child:
        while not list(out.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child, signal.SIGINT)
    shown = (tmp_path / "told").read_text()
    n_made = len(killed_jobs.clips(out))
    assert nursery.status == 1 and 1 <= n_made < 400
    told = re.fullmatch(
        r"minibark: interrupted; (\d+) clips? made and kept, the same command goes on",
        shown.splitlines()[-1],
    )
    assert told and int(told[1]) in (n_made - 1, n_made)  # the last may not be counted yet
    assert re.search(r"\d/400 \[\d\d:\d\d<.*clips/s", shown) and "Traceback" not in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--shard", "3/2"], "expected I/N with I from 1 to N, got '3/2'"),
        (["--shard", "1"], "expected I/N"),
        (["--format", "aac"], "invalid choice"),
        (["--rows", "0"], "not in [1, 1024]"),
        (["--top-k", "-1"], "--top-k"),
    ],
)
def test_wrong_usage_exits_2(words, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["batch", "m", "out", *words])
    assert stop.value.code == 2 and expected in capsys.readouterr().err


def test_a_format_that_cannot_be_written_is_refused_at_once(bark, tmp_path):
    manifest = write(tmp_path / "m", {"a": {"text": "Hi."}})
    for audio_format, words in (("opus", "at 300 Hz cannot be written"), ("aac", "must be one of")):
        with pytest.raises(ValueError, match=words):
            run(bark, manifest, tmp_path / "out", audio_format=audio_format)
    assert not (tmp_path / "out").exists()
