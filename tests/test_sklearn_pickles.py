"""scikit-learn's classifier out of its pickle: what scikit-learn says, and nothing else is read."""

import json
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path
from random import Random

import hostile_files
import joblib
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.pipeline
import sklearn.preprocessing
from sklearn.linear_model import LogisticRegression

from minibark import CheckpointError
from minibark.checkpoint.tensors import read_pickle
from minibark.commands.main import main
from minibark.detect import Classifier
from minibark.detect.sklearn_pickles import import_classifier

OLD = Path(__file__).parent / "old_sklearn"
QUESTIONS = [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0], [-3.0, 1.5, 0.25]]
PROTOCOLS = range(6)


def trained(width: int = 3, dtype: type = np.float64, **options: object) -> LogisticRegression:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, width)).astype(dtype), np.arange(40) % 2
    x[:, 0] += y
    return LogisticRegression(**options).fit(x, y)


def read(content: bytes, folder: Path) -> Classifier:
    (folder / "a.pkl").write_bytes(content)
    return import_classifier(folder / "a.pkl")


# ---- what scikit-learn writes ----


@pytest.mark.parametrize("path", sorted(OLD.glob("*.pkl")), ids=lambda path: path.stem)
def test_files_of_old_scikit_learn(path, tmp_path):
    """Each has what that scikit-learn answered in its first line."""
    line, _, code = path.read_bytes().partition(b"\n")
    classifier = read(code, tmp_path)
    found = [classifier.probability(np.array(question)) for question in QUESTIONS]
    np.testing.assert_allclose(found, json.loads(line), atol=1e-12)


def test_there_are_files_of_each_old_scikit_learn():
    names = [path.stem.split("-") for path in OLD.glob("*.pkl")]
    versions = {version for version, _, _ in names}
    assert versions == {"0.24.2", "1.1.3", "1.6.1"}
    for version in versions:
        assert {int(n[2]) for n in names if n[:2] == [version, "auto"]} == set(PROTOCOLS)
        assert [version, "multinomial", "4"] in names


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("width", [1, 3, 768])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_this_scikit_learn_at_every_protocol(protocol, width, dtype, tmp_path):
    model = trained(width, dtype)
    classifier = read(pickle.dumps(model, protocol), tmp_path)
    assert np.array_equal(classifier.weight, model.coef_) and classifier.weight.shape == (1, width)
    assert np.array_equal(classifier.bias, model.intercept_)
    for x in np.random.default_rng(1).normal(size=(5, width)).astype(dtype):
        expected = model.predict_proba(x[None])[0, 1]
        assert abs(classifier.probability(x) - expected) < 1e-6
    # What Python's other pickler writes, and what has been made small.
    slow = pickle._dumps(model, protocol)
    small = pickletools.optimize(pickle.dumps(model, protocol))
    for other in (slow, small):
        assert np.array_equal(read(other, tmp_path).weight, model.coef_)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weight": "balanced"},
        {"class_weight": {0: 1.0, 1: 2.5}},
        {"solver": "liblinear", "max_iter": 7000, "random_state": 70_000},
        {"fit_intercept": False},
        {"C": np.float64(0.5), "warm_start": True},
        {"n_jobs": -1, "tol": 1e-300},
    ],
)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_its_settings_do_not_matter(options, protocol, tmp_path):
    model = trained(**options)
    classifier = read(pickle.dumps(model, protocol), tmp_path)
    expected = model.predict_proba(np.array(QUESTIONS))[:, 1]
    found = [classifier.probability(np.array(question)) for question in QUESTIONS]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_big_endian_and_boolean(tmp_path):
    model = trained()
    model.coef_ = model.coef_.astype(">f8")
    model.classes_ = np.array([False, True])
    assert np.array_equal(read(pickle.dumps(model, 2), tmp_path).weight, model.coef_)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i2", "f4", "f8"])
def test_labels_and_weights_of_classes_are_any_numbers(dtype, protocol, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 3)), (np.arange(40) % 2).astype(dtype)
    model = LogisticRegression(class_weight={np.int64(0): np.float64(1), np.int64(1): 2.0})
    model.fit(x, y).verbose = 1 << 4000  # Python writes so large a number in a way of its own
    found = read(pickle.dumps(model, protocol), tmp_path)
    assert found.weight.tobytes() == model.coef_.tobytes()


@pytest.mark.parametrize("labels", [(-1, 1), (0.0, 1.0), (-1.0, 1.0), (False, True)])
def test_the_greater_class_is_bark_s(labels, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 3)), np.array(labels)[np.arange(40) % 2]
    x[:, 0] += y == 1
    model = LogisticRegression().fit(x, y)
    classifier = read(pickle.dumps(model), tmp_path)
    expected = model.predict_proba(np.array(QUESTIONS))[:, 1]
    found = [classifier.probability(np.array(question)) for question in QUESTIONS]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.ptp(expected) > 0.1


def test_a_folder_is_no_pickle(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder; name the pickle in it"):
        import_classifier(tmp_path)


def test_a_classifier_that_is_imported_already(tmp_path):
    Classifier([[1.0, 2.0]], [0.5]).save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="safetensors file already; give it to --classifier"):
        import_classifier(tmp_path / "c.safetensors")


def test_names_of_features_are_let_be(tmp_path):
    model = trained()
    model.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    for protocol in PROTOCOLS:
        read(pickle.dumps(model, protocol), tmp_path)


# ---- what is refused ----


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def with_field(**fields: object) -> LogisticRegression:
    model = trained()
    vars(model).update(fields)
    return model


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_run(protocol, tmp_path):
    bait = tmp_path / "bait"
    for value in (Evil(bait), [Evil(bait)], with_field(extra=Evil(bait))):
        content = pickle.dumps(value, protocol)
        with pytest.raises(CheckpointError, match=r"a\.pkl: it holds more than .* refused: \w+"):
            read(content, tmp_path)
        assert not bait.exists()
        pickle.loads(content)
        assert bait.exists()  # it would have been
        bait.unlink()


OTHERS = {
    "LogisticRegressionCV": sklearn.linear_model.LogisticRegressionCV(),
    "pipeline.Pipeline": sklearn.pipeline.make_pipeline(trained()),
    "StandardScaler": sklearn.preprocessing.StandardScaler(),
    "Ridge": sklearn.linear_model.RidgeClassifier(),
    "__randomstate_ctor": with_field(random_state=np.random.RandomState(0)),
    "pathlib": with_field(extra=Path("x")),
    "range": with_field(extra=range(3)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_others_are_refused_by_name(name, protocol, tmp_path):
    with pytest.raises(CheckpointError, match=rf"which is refused: \S*{name}"):
        read(pickle.dumps(OTHERS[name], protocol), tmp_path)


def test_joblib_s_files_are_refused_by_name(tmp_path):
    joblib.dump(trained(), tmp_path / "a.joblib")
    with pytest.raises(CheckpointError, match=r"refused: joblib\.numpy_pickle\."):
        import_classifier(tmp_path / "a.joblib")
    for compress in ("zlib", "gzip", "bz2", "lzma"):
        joblib.dump(trained(), tmp_path / "a.joblib", compress=(compress, 3))
        with pytest.raises(CheckpointError, match=r"it is compressed; write it anew"):
            import_classifier(tmp_path / "a.joblib")


ARRAY = np.ones((1, 3))
BAD = {
    "not fitted": (LogisticRegression(), r"it lacks classes_, coef_, intercept_: it was not"),
    "three classes": (with_field(classes_=np.arange(3)), "0 and 1 are; they are 0, 1, 2"),
    "turned": (with_field(classes_=np.array([1, 0])), "they are 1, 0"),
    "other numbers": (with_field(classes_=np.array([1, 2])), "they are 1, 2"),
    "words": (with_field(classes_=np.array(["a", "b"])), "its classes are names"),
    "no weights": (with_field(coef_=None), "coef_ must be an array"),
    "list": (with_field(coef_=[[1.0, 2.0]]), "coef_ must be an array"),
    "flat": (with_field(coef_=np.ones(3)), r"coef_ must be \(1, C\)"),
    "two rows": (with_field(coef_=np.ones((2, 3))), r"coef_ must be \(1, C\)"),
    "empty": (with_field(coef_=np.ones((1, 0))), "coef_ must be an array"),
    "cube": (with_field(coef_=np.ones((1, 1, 3))), "coef_ must be an array"),
    "NaN": (with_field(coef_=np.full((1, 3), np.nan)), "finite numbers"),
    "complex": (with_field(coef_=ARRAY * 1j), "coef_ must be an array"),
    "objects": (with_field(coef_=ARRAY.astype(object)), "coef_ must be an array"),
    "two biases": (with_field(intercept_=np.ones(2)), r"intercept_ \(1,\)"),
    "array": (ARRAY, "holds an array, not"),
    "number": (3, "holds an int, not"),
    "dictionary": ({"coef_": ARRAY}, "holds a dict, not"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_classifiers_that_are_none(case, protocol, tmp_path):
    value, text = BAD[case]
    with pytest.raises(CheckpointError, match=rf"^\S*a\.pkl: .*({text})"):
        read(pickle.dumps(value, protocol), tmp_path)


def short_text(text: str) -> bytes:
    return b"\x8c" + struct.pack("<B", len(text)) + text.encode()


PROGRAMS = {
    "empty": (b"", "cut short"),
    "text": (b"<html>", "opcode b'<'"),
    "protocol": (b"\x80\x06.", "protocol 6"),
    "class": (b"cos\nsystem\n.", r"refused: os\.system"),
    "class by the stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"refused: os\.system"),
    "class of numbers": (b"\x80\x04K\x01K\x02\x93.", "wrong before byte"),
    "call of a text": (b"\x80\x04" + short_text("x") + b")R.", "calls a function otherwise"),
    "call of a type": (b"cnumpy\nndarray\n)R.", "calls a function otherwise"),
    "encoding": (b"c_codecs\nencode\n(VA\nVhex\ntR.", "calls a function otherwise"),
    "bytes of a length": (b"c__builtin__\nbytes\n(I9999999999\ntR.", "calls a function otherwise"),
    "object alone": (b"c__builtin__\nobject\n)R.", "calls a function otherwise"),
    "state of a number": (b"K\x01}b.", "wrong before byte"),
    "persistent": (b"K\x01Q.", "persistent id"),
    "old instance": (b"(ios\nsystem\n.", "opcode b'i'"),
    "extension": (b"\x82\x01.", "opcode"),
    "outside buffer": (b"\x80\x05\x97.", "opcode"),
    "set": (b"\x80\x04\x8f.", "opcode"),
    "large text": (b"\x8d" + struct.pack("<Q", 1 << 62) + b"x.", "cut short"),
    "large bytes": (b"\x96" + struct.pack("<Q", 1 << 62) + b"x.", "cut short"),
    "long number": (b"I" + b"9" * 5000 + b"\n.", "limit|digits"),
    "no number": (b"Ix\n.", "invalid literal"),
    "no memo": (b"g7\n.", "wrong before byte"),
    "torch's storage": (b"ctorch\nFloatStorage\n.", r"refused: torch\.FloatStorage"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_that_are_refused(case, tmp_path):
    program, text = PROGRAMS[case]
    with pytest.raises(CheckpointError, match=text):
        read(program, tmp_path)


def test_a_small_program_takes_little_memory(tmp_path):
    """A text that is encoded again and again is kept once."""
    text = b"V" + b"x" * 10**6 + b"\np0\n"
    call = b"c_codecs\nencode\np1\n" + text + b"Vlatin1\np2\n"
    again = b"h\x01h\x00h\x02\x86R"
    program = b"(" + call + again * 2_000 + b"l."
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="holds a list"):
        read(program, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # copies would be 2 GB


def test_files_that_are_too_large(tmp_path):
    with pytest.raises(CheckpointError, match="larger than 4 MiB"):
        read(bytes(5 << 20), tmp_path)
    with pytest.raises(FileNotFoundError):
        import_classifier(tmp_path / "none.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damaged_files_are_named_errors_or_classifiers(protocol, tmp_path):
    content, random = pickle.dumps(trained(), protocol), Random(protocol)
    n_refused = 0
    for _ in range(120):
        try:
            classifier = read(hostile_files.damage(content, random), tmp_path)
            assert np.isfinite(classifier.weight).all() and len(classifier.weight) == 1
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1
            n_refused += 1
    assert 24 < n_refused < 120


def test_model_checkpoints_are_as_strict_as_before(tmp_path):
    for protocol in PROTOCOLS:
        (tmp_path / "a.bin").write_bytes(pickle.dumps(trained(), protocol))
        with pytest.raises(CheckpointError, match=r"a\.bin is damaged"):
            read_pickle(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(pickle.dumps(trained(), 2))
    with pytest.raises(CheckpointError, match=r"refused: sklearn\.linear_model"):
        read_pickle(tmp_path / "a.bin")


# ---- the command ----


def test_the_command_writes_a_file_or_nothing(tmp_path, capsys):
    model = trained(768)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(model))
    out = tmp_path / "out.safetensors"
    words = ["detect", "--import-classifier", str(tmp_path / "a.pkl"), str(out)]
    assert main(words) == 0
    assert "a classifier of 768 features" in capsys.readouterr().err
    classifier = Classifier.load(out)
    assert np.array_equal(classifier.weight, model.coef_)
    assert np.array_equal(classifier.bias, model.intercept_) and classifier.fingerprint is None
    before = out.read_bytes()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(OTHERS["pipeline.Pipeline"]))
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and "sklearn.pipeline.Pipeline" in shown
    assert out.read_bytes() == before
    assert main(["detect", "--import-classifier", "none.pkl", str(out)]) == 1
    assert "none.pkl: No such file" in capsys.readouterr().err
