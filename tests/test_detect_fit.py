"""Fitting a classifier: scikit-learn's answers, honest folds, codec copies, and the card beside."""

import json
import os
import pickle
import re
import shlex
import shutil

import checkpoints
import hubert_checkpoints
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from minibark import CheckpointError, CodecConfig
from minibark.commands.main import main
from minibark.detect import Classifier, Detector
from minibark.detect.card import card_place, card_text
from minibark.detect.codec_encoder import open_encoder
from minibark.detect.fitting import (
    BATCH_MARK,
    SUFFIXES,
    Example,
    fit_classifier,
    folds_of,
    recordings_in,
)
from minibark.detect.pretrained import HUBERT, fingerprint, open_hubert
from minibark.detect.regression import average_precision, equal_error_rate, fit

CODEC = CodecConfig(num_filters=4, hidden_size=32)  # of `checkpoints.narrow_encodec`


# ---- the regression and its rates ----


@pytest.mark.parametrize(("n", "width"), [(8, 3), (60, 5), (40, 100)])
@pytest.mark.parametrize("strength", [0.001, 0.1, 1.0])
def test_the_regression_is_scikit_learn_s(n, width, strength):
    random = np.random.default_rng(n)
    x, y = random.normal(2, 3, (n, width)), np.arange(n) % 3 == 0
    x[:, 0] += y
    x[:, -1] = 4.0  # tells nothing
    weight, bias = fit(x, y, strength)
    scaler = StandardScaler().fit(x)
    options = {"class_weight": "balanced", "tol": 1e-12, "max_iter": 10_000}
    model = LogisticRegression(C=1 / (n * strength), **options).fit(scaler.transform(x), y)
    expected = model.predict_proba(scaler.transform(x))[:, 1]
    found = [Classifier(weight, bias).probability(row) for row in x]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.std(expected) > 1e-3
    assert fit(x, y, strength)[0].tobytes() == weight.tobytes()


@settings(deadline=None, max_examples=80)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: len({flag for _, flag in pairs}) == 2
    )
)
def test_rates_are_what_they_are_called(pairs):
    scores, is_bark = (np.array(column) for column in zip(*pairs, strict=True))
    scores = scores / 9
    expected = average_precision_score(is_bark, scores)
    assert average_precision(scores, is_bark) == pytest.approx(expected, abs=1e-12)
    rate = equal_error_rate(scores, is_bark)
    # Both kinds of error at each threshold; the rate lies where their order changes.
    thresholds = [-1, *sorted(set(scores)), 2]
    false = np.array([(scores[~is_bark] >= t).mean() for t in thresholds])
    missed = np.array([(scores[is_bark] < t).mean() for t in thresholds])
    assert np.maximum(false, missed).min() >= rate - 1e-12
    assert np.minimum(false, missed).max() <= rate + 1e-12
    assert equal_error_rate(-scores, ~is_bark) == pytest.approx(rate)  # neither class is special


def test_known_rates():
    scores, is_bark = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert average_precision(scores, is_bark) == pytest.approx((1 + 2 / 3) / 2)
    assert equal_error_rate(scores, is_bark) == 0.5
    assert equal_error_rate(scores, np.array([True, True, False, False])) == 0
    assert equal_error_rate(np.ones(4), is_bark) == 0.5


def example(rows, is_bark, group, is_copy=False):
    return Example(np.array(rows, dtype=float), is_bark, is_copy, group)


def test_folds_keep_copies_together_and_classes_apart():
    examples = [example([[0.0]], True, i) for i in range(11)]
    examples += [example([[0.0]], False, 20 + i // 2, i % 2 == 1) for i in range(28)]
    folds = folds_of(examples)
    for is_bark, most in ((True, 3), (False, 6)):
        counts = np.bincount(
            [f for f, e in zip(folds, examples, strict=True) if e.is_bark == is_bark]
        )
        assert len(counts) == 5 and 2 <= counts.min() and counts.max() <= most
    by_group = {}
    for fold, e in zip(folds, examples, strict=True):
        assert by_group.setdefault(e.group, fold) == fold
    assert folds == folds_of(examples)


def test_figures_are_of_recordings_that_were_not_seen():
    """Pure noise, which a classifier learns by heart: unseen, it is at chance."""
    random = np.random.default_rng(3)
    examples = [example(random.normal(size=(1, 200)), i % 2 == 0, i) for i in range(160)]
    hubert = open_hubert_of_nothing()
    classifier, report = fit_classifier(examples, hubert, 1e-4)
    seen = [classifier.probability(e.rows[0]) > 0.5 for e in examples]
    assert seen == [e.is_bark for e in examples]
    assert 0.35 < report.everything.equal_error_rate < 0.65
    assert report.copies is None and report.recordings == report.everything
    assert (report.everything.n_bark, report.everything.n_other, report.n_windows) == (80, 80, 160)


def open_hubert_of_nothing():
    from minibark.detect.hubert import Hubert, HubertConfig

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    return Hubert(HubertConfig(**sizes, conv_dim=(4,) * 7, num_conv_pos_embedding_groups=2))


# ---- the codec's encoder ----


@pytest.fixture(scope="module")
def encodec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodec")
    checkpoints.narrow_encodec().save_pretrained(folder)
    return folder


def books(model) -> torch.Tensor:
    return torch.stack([layer.codebook.embed for layer in model.quantizer.layers[:8]])


def test_codes_are_transformers_(encodec):
    model = checkpoints.narrow_encodec()
    ours = open_encoder(encodec, CODEC, books(model))
    for n in (1, 2, 7, 100, 319, 320, 321, 24_007):
        audio = torch.randn(n) * 0.1
        with torch.inference_mode():
            latent = model.encoder(audio[None, None])
            torch.testing.assert_close(ours.encoder(audio[None, None]), latent, atol=1e-4, rtol=0)
            codes = model.encode(audio[None, None], bandwidth=6.0).audio_codes[0]
            assert torch.equal(ours(audio), codes)
    assert len(codes.unique()) > 100


def test_the_encoder_is_found_in_each_layout(encodec, tmp_path):
    """Of Suno's, of a whole Bark, and in facebook's own file."""
    model = checkpoints.narrow_encodec()
    state = {f"codec_model.{name}": tensor for name, tensor in model.state_dict().items()}
    (tmp_path / "bark").mkdir()
    torch.save(state | {"x": torch.zeros(1)}, tmp_path / "bark" / "pytorch_model.bin")
    (tmp_path / "bark" / "config.json").write_text("{}")
    (tmp_path / "suno" / "encodec_24khz").mkdir(parents=True)
    (tmp_path / "suno" / "text.pt").touch()
    for path in encodec.iterdir():
        shutil.copy(path, tmp_path / "suno" / "encodec_24khz")
    names = (("encoder.layers.", "encoder.model."), (r"\.conv\.", ".conv.conv."))
    named = {}
    for name, tensor in model.state_dict().items():
        for ours, facebook_s in names:
            name = re.sub(ours, facebook_s, name) if name.startswith("encoder.") else name
        named[name] = tensor
    torch.save(named, tmp_path / "encodec_24khz.th")
    audio = torch.randn(5_000) * 0.1
    expected = open_encoder(encodec, CODEC, books(model))(audio)
    for place in (tmp_path / "bark", tmp_path / "suno", tmp_path / "encodec_24khz.th"):
        found = open_encoder(place, CODEC, books(model), cache_dir=tmp_path / "cache")
        assert torch.equal(found(audio), expected), place


def test_encoders_that_are_not_there(encodec, tmp_path):
    model = checkpoints.narrow_encodec()
    for name in ("tiny", "random"):
        with pytest.raises(CheckpointError, match=f"{name} has no encoder of its codec"):
            open_encoder(name, CODEC, books(model))
    with pytest.raises(CheckpointError, match="must have shape"):
        open_encoder(encodec, CodecConfig(num_filters=8, hidden_size=32), books(model))
    with pytest.raises(CheckpointError, match="lacks or cannot have"):
        open_encoder(encodec, CodecConfig(num_filters=4, num_lstm_layers=1), books(model))


# ---- the command ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Hisses for Bark's, tones for the others, 6 and 7, and a HuBERT."""
    root = tmp_path_factory.mktemp("fit")
    for kind, n in (("bark", 6), ("not", 7)):
        (root / kind / "more").mkdir(parents=True)
        for i in range(n):
            time_s = np.arange(7_200 + 300 * i) / 24_000
            wave = np.sin(2 * np.pi * (180 + 30 * i) * time_s)
            if kind == "bark":
                wave = np.random.default_rng(i).uniform(-1, 1, len(wave))
            place = root / kind / ("more" if i % 2 else ".") / f"{i}.{'wav' if i else 'flac'}"
            soundfile.write(place, 0.3 * wave, 24_000)
        (root / kind / "list.jsonl").write_text("{}")
    hubert_checkpoints.save_hubert(root / "hubert")
    return root


def command(folders, out, *options) -> list[str]:
    words = ["--bark", folders / "bark", "--not-bark", folders / "not", out]
    return ["detect", "--fit", *map(str, words), "--hubert", str(folders / "hubert"), *options]


def test_fit_writes_a_classifier_and_its_card(folders, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert main(command(folders, out, "-q")) == 0
    shown = capsys.readouterr()
    figures = r"6 of Bark, 7 recordings: AP (\d\.\d{3}), EER (\d\.\d{3}), \d taken for Bark, "
    figures = "cross-validated: " + figures + r"\d of Bark missed\n"
    precision, error = map(float, re.fullmatch(figures, shown.out).groups())
    assert precision > 0.7 and error < 0.4  # by chance 0.46 and 0.5
    assert "warning: without --codec-copies" in shown.err
    classifier = Classifier.load(out)
    assert classifier.fingerprint == fingerprint(open_hubert(folders / "hubert"))
    detector = Detector.from_pretrained(folders / "hubert", out)
    for kind in ("bark", "not"):
        for path in (folders / kind).rglob("*.wav"):
            assert (detector.judge(path).probability > 0.5) == (kind == "bark")
    card = card_place(out).read_text()
    for text in ("6 recordings", "7 recordings, no codec copies", classifier.fingerprint):
        assert text in card
    for text in ("hint and no proof", "fitted without codec copies", "| recordings | 6 + 7 |"):
        assert text in card
    before = out.read_bytes(), card
    assert main(command(folders, out, "-q")) == 0
    assert (out.read_bytes(), card_place(out).read_text()) == before


def test_codec_copies_are_among_the_others(folders, encodec, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    options = ("--codec-copies", "--model", str(encodec), "-q")
    assert main(command(folders, out, *options)) == 0
    shown = capsys.readouterr()
    assert all("left out of" in line for line in shown.err.splitlines())
    first, second = shown.out.splitlines()
    assert first.startswith("cross-validated: 6 of Bark, 7 recordings: AP")
    assert second.startswith("cross-validated: 6 of Bark, 7 codec copies: AP")
    card = card_place(out).read_text()
    assert f"7 codec copies of them by `{encodec}`" in card and "without codec copies" not in card
    assert "| both | 6 + 14 |" in card


def test_a_model_without_an_encoder_says_so(folders, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert main(command(folders, out, "--codec-copies", "--model", "tiny")) == 1
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if "left out of" not in line]
    assert len(lines) == 1 and not list(tmp_path.iterdir())
    assert lines[0].startswith("minibark: tiny has no encoder of its codec, without which")


def test_what_cannot_be_fitted_is_one_line(folders, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out.safetensors"
    shutil.copytree(folders, root)

    def refused() -> str:
        assert main(command(root, out, "-q")) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert len(lines) == 1 and not out.exists()
        return lines[0]

    shutil.copy(root / "bark" / "2.wav", root / "not" / "9.wav")
    assert "one recording is in both classes: " in refused()
    (root / "not" / "9.wav").unlink()
    for i in (0, 2):
        next((root / "bark").glob(f"{i}.*")).unlink()
    text = "there are 4 recordings of Bark, and at least 5 are needed, one for each fold"
    assert text in refused()
    (root / "bark" / "bad.wav").write_bytes(b"RIFF")  # is left out, and then there are too few
    assert text in refused()
    shutil.rmtree(root / "not")
    assert "there is no folder" in refused()
    (root / "not").mkdir()
    assert "holds no recordings (.wav, .wave" in refused()
    out = tmp_path / "none" / "out.safetensors"
    assert "does not exist; create it first" in refused()


def test_damaged_and_double_recordings_are_left_out(folders, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out.safetensors"
    shutil.copytree(folders, root)
    (root / "bark" / "bad.wav").write_bytes(b"RIFF")
    shutil.copy(root / "not" / "2.wav", root / "not" / "again.wav")
    assert main([*command(root, out, "-q"), "--codec-copies", "--model", "tiny"]) == 1
    capsys.readouterr()
    assert main(command(root, out, "-q")) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("cross-validated: 6 of Bark, 7 recordings")
    assert "again.wav is" in shown.err and "bad.wav: damaged" in shown.err


def test_what_was_fitted_is_used_by_the_command(folders, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert main(command(folders, out, "-q")) == 0
    capsys.readouterr()
    files = [str(folders / kind / "2.wav") for kind in ("bark", "not")]
    words = ["--classifier", str(out), "--hubert", str(folders / "hubert"), "--json"]
    assert main(["detect", *files, *words]) == 0
    found = [json.loads(line)["p_bark"] for line in capsys.readouterr().out.splitlines()]
    assert found[0] > 0.5 > found[1]


# ---- what a first user did ----


def test_the_card_replaces_nothing_but_a_card(folders, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    others = [out.with_suffix(".md"), tmp_path / "README.md", card_place(out)]
    for place in others:
        place.write_text("my notes")
    assert main(command(folders, out)) == 1
    assert "mine.safetensors.md is there and is no card of" in capsys.readouterr().err
    assert not out.exists()
    card_place(out).unlink()
    assert main(command(folders, out)) == 0
    assert capsys.readouterr().err.rstrip().endswith(f"what it can tell and what not: {out}.md")
    assert [place.read_text() for place in others[:2]] == ["my notes"] * 2
    card = card_place(out).read_text()
    assert f"--bark {folders}/bark" in card and f"--classifier {out}" in card


def test_a_classifier_and_its_card_are_written_together(tmp_path):
    from minibark.detect.card import write_both

    examples = [example([[i % 2.0, 1.0 * i]], i % 2 == 0, i) for i in range(20)]
    classifier, report = fit_classifier(examples, open_hubert_of_nothing())
    out = tmp_path / "a`b.safetensors"
    words = {"hubert": "a`b", "fingerprint": "f", "strength": 1.0, "codec": None}
    card_place(out).mkdir()
    (card_place(out) / "x").touch()
    with pytest.raises(OSError, match="a`b"):
        write_both(classifier, out, report, **words, command=["minibark", "a b"])
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1
    shutil.rmtree(card_place(out))
    write_both(classifier, out, report, **words, command=["minibark", "a b"])
    assert Classifier.load(out).weight.tobytes() == classifier.weight.tobytes()
    card = card_place(out).read_text()
    assert "`minibark 'a b'`" in card and "layer 6 of `` a`b ``" in card


def test_what_is_left_out_is_counted(folders, tmp_path, recwarn):
    root = tmp_path / "root"
    shutil.copytree(folders / "bark", root)
    n = len(recordings_in(root))
    for name in ("a.WAV", "b.AIFC", "c.rf64", "d.snd", "e.voc", "f.W64", "g.m4a", ".hidden"):
        (root / name).touch()
    (root / "link").symlink_to(folders / "not")
    (root / "file.wav").symlink_to(folders / "not" / "2.wav")
    (root / "gone.wav").symlink_to(root / "nothing")
    recwarn.clear()
    assert len(recordings_in(root)) == n + 7
    text = str(recwarn.pop().message)
    assert "3 files that are no recordings by their suffix (.hidden, g.m4a, list.jsonl)" in text
    assert not {".sd2", ".raw"} & set(SUFFIXES)  # of which nothing is heard
    assert "1 links to folders (link)" in text and "what is no file (gone.wav)" in text
    assert not recwarn.list


def test_one_recording_in_two_formats(folders, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out.safetensors"
    shutil.copytree(folders, root)
    audio, rate = soundfile.read(root / "not" / "2.wav", dtype="int16")
    soundfile.write(root / "not" / "again.flac", audio, rate)
    assert main(command(root, out, "-q")) == 0
    assert f"again.flac is {root}/not/2.wav again and is left out" in capsys.readouterr().err
    soundfile.write(root / "bark" / "again.flac", audio, rate)
    assert main(command(root, out, "-q")) == 1
    assert "one recording is in both classes: " in capsys.readouterr().err


def test_two_classes_of_which_one_lies_in_the_other(folders, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out.safetensors"
    shutil.copytree(folders / "not", root / "not")
    shutil.copytree(folders / "bark", root / "not" / "bark")
    (root / "link").symlink_to(root / "not" / "bark")
    for bark, others, text in (
        ("not/bark", "not", "not/bark is a folder in "),
        ("link", "not", "link is a folder in "),
        ("not", "not/bark", "not/bark is a folder in "),
        ("not/../not", "not", "not/../not is the same folder as "),
    ):
        words = ["--bark", f"{root}/{bark}", "--not-bark", f"{root}/{others}", str(out)]
        assert main(["detect", "--fit", *words, "--hubert", str(folders / "hubert")]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert len(lines) == 1 and lines[0].startswith("minibark: ") and text in lines[0]
    assert not out.exists()


def test_what_a_batch_wrote_beside_its_clips_is_not_told_of(tmp_path, recwarn):
    place, manifest = tmp_path / "clips", tmp_path / "lines.jsonl"
    lines = [{"id": "a.b", "text": "Yes."}, {"id": "c", "text": ""}]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    words = ["--model", "tiny", "--max-duration", "1", "--retries", "0", "-q"]
    assert main(["batch", str(manifest), str(place), *words]) == 1
    written = {".minibark-batch", "a.b.wav", "a.b.json", "errors.jsonl"}
    assert set(os.listdir(place)) == written
    recwarn.clear()
    assert recordings_in(place) == [place / "a.b.wav"]
    assert not recwarn.list
    (place / "d.json").write_text("{}")  # of no clip
    assert recordings_in(place) == [place / "a.b.wav"]
    assert "1 files that are no recordings by their suffix (d.json)" in str(recwarn.pop().message)
    (place / "d.json").unlink()
    (place / BATCH_MARK).unlink()  # and then it is any folder
    recordings_in(place)
    assert "(a.b.json, errors.jsonl)" in str(recwarn.pop().message)


def test_an_imported_classifier_lies_beside_no_card_of_another(folders, tmp_path, capsys):
    out, pkl = tmp_path / "mine.safetensors", tmp_path / "a.pkl"
    model = LogisticRegression().fit(
        np.random.default_rng(0).normal(size=(9, 32)), np.arange(9) % 2
    )
    pkl.write_bytes(pickle.dumps(model))
    words = ["detect", "--import-classifier", str(pkl), str(out)]
    card_place(out).write_text("my notes")  # no card, and nothing is written there
    assert main(words) == 0
    card_place(out).unlink()
    assert main(command(folders, out, "-q")) == 0
    before = out.read_bytes(), card_place(out).read_bytes()
    capsys.readouterr()
    assert main(words) == 1
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "mine.safetensors.md is the card of another" in told
    assert (out.read_bytes(), card_place(out).read_bytes()) == before
    card_place(out).unlink()
    assert main(words) == 0


def test_the_command_on_the_card_judges(folders, tmp_path, capsys):
    """As it stands there, after a fit with a HuBERT of one's own."""
    out = tmp_path / "it is mine.safetensors"
    assert main(command(folders, out, "-q")) == 0
    used = re.search(r"Used by `minibark (.+)`\.", card_place(out).read_text())[1]
    file = str(folders / "bark" / "2.wav")
    capsys.readouterr()
    assert main([file if word == "FILE" else word for word in shlex.split(used)]) == 0
    assert "sounds like Bark" in capsys.readouterr().out


def test_the_command_on_the_card_names_no_more_than_it_needs():
    examples = [example([[i % 2.0, 1.0 * i]], i % 2 == 0, i) for i in range(20)]
    _, report = fit_classifier(examples, open_hubert_of_nothing())
    for hubert, revision, expected in (
        (HUBERT, None, "FILE --classifier c.safetensors`."),
        (HUBERT, "main", "FILE --classifier c.safetensors --revision main`."),
        ("a/b", "v 1", "FILE --classifier c.safetensors --hubert a/b --revision 'v 1'`."),
    ):
        words = {"fingerprint": "f", "strength": 1.0, "codec": None, "command": ["minibark"]}
        text = card_text("c.safetensors", report, hubert=hubert, revision=revision, **words)
        assert f"Used by `minibark detect {expected}" in text


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file whose reading fails")
def test_a_recording_that_cannot_be_read_is_left_out(folders, tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out.safetensors"
    shutil.copytree(folders, root)
    (root / "not" / "disk.wav").symlink_to("/proc/self/mem")
    assert main(command(root, out, "-q")) == 0
    shown = capsys.readouterr()
    assert "left out: " in shown.err and "disk.wav: " in shown.err
    assert "6 of Bark, 7 recordings" in shown.out
    words = ["--classifier", str(out), "--hubert", str(folders / "hubert")]
    assert main(["detect", str(root / "not" / "disk.wav"), *words]) == 1
    assert re.fullmatch(r"minibark: \S+disk\.wav: [\w /]+\n", capsys.readouterr().err)


def test_codecs_that_cannot_be_are_told_why(folders, encodec, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    for name in ("damaged", "stereo"):
        shutil.copytree(encodec, tmp_path / name)
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    config = json.loads((encodec / "config.json").read_text())
    config |= {"sampling_rate": 48_000, "audio_channels": 2}
    (tmp_path / "stereo" / "config.json").write_text(json.dumps(config))
    (tmp_path / "file.th").write_bytes(b"x" * 99)
    for name, text in {
        "damaged": "model.safetensors is damaged",
        "stereo": "codec of 48000 Hz and 2 channels; Bark's is the EnCodec of 24 kHz",
        "file.th": "file.th is damaged or not a checkpoint",
    }.items():
        options = ("--codec-copies", "--model", str(tmp_path / name))
        assert main(command(folders, out, *options)) == 1
        found = capsys.readouterr().err
        assert text in found and "--stage" not in found


def test_a_hubert_of_nan_is_one_error(folders, tmp_path, capsys):
    model = hubert_checkpoints.small_hubert()
    model.encoder.layers[0].final_layer_norm.weight.data.fill_(torch.nan)
    hubert_checkpoints.save_hubert(tmp_path / "nan", model)
    out = tmp_path / "out.safetensors"
    words = [*command(folders, out, "-q"), "--hubert", str(tmp_path / "nan")]
    assert main(words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert len(lines) == 1 and "HuBERT gives features that are not finite" in lines[0]
