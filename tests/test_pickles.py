"""Files of `torch.save`: what torch reads in them, and nothing else.

torch itself is the independent reader. The files in `old_torch` were written by old releases of it.
"""

import functools
import importlib.util
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from random import Random

import hostile_files as made
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minibark import CheckpointError
from minibark.checkpoint.pickles import MAX_PROGRAM_BYTES, Machine
from minibark.checkpoint.reading import read_any
from minibark.checkpoint.tensors import read_pickle

OLD = Path(__file__).parent / "old_torch"
linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


@functools.cache
def writer():
    spec = importlib.util.spec_from_file_location("write", OLD / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same_as_torch(path: Path) -> dict:
    """What we read of a file, once it is what torch reads, which runs the pickle."""
    content = torch.load(path, weights_only=False)
    theirs = content.get("model", content)
    ours, metadata = read_pickle(path)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert type(ours[name]) is torch.Tensor
        assert ours[name].dtype == tensor.dtype
        assert ours[name].is_contiguous()
        assert torch.equal(ours[name], tensor.detach()), name
    if "model_args" in content:
        assert json.loads(metadata["model_args"]) == content["model_args"]
    return ours


# ---- what torch writes ----


@pytest.mark.parametrize("path", sorted(OLD.glob("*.pt")), ids=lambda path: path.stem)
def test_files_of_old_torch(path):
    state = same_as_torch(path)
    expected = writer().content()["model"]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert state["tied"] is state["table"]


def test_there_are_files_of_each_old_torch():
    assert len(list(OLD.glob("*.pt"))) == 7


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_files_of_this_torch(is_zip, tmp_path):
    content = writer().content()
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    state = same_as_torch(tmp_path / "a.pt")
    assert state["tied"] is state["table"]
    torch.save(content["model"], tmp_path / "b.pt", _use_new_zipfile_serialization=is_zip)
    same_as_torch(tmp_path / "b.pt")


@st.composite
def states(draw) -> dict[str, torch.Tensor]:
    """Tensors of any shape and stride, some views of others; no two overlap in part."""
    state = {}
    for i in range(draw(st.integers(1, 5))):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=4))
        tensor = torch.randint(0, 99, shape).to(dtype)
        change = draw(st.sampled_from(["", "turn", "cut", "split", "tie", "parameter"]))
        if change == "turn" and len(shape) > 1:
            tensor = tensor.transpose(0, draw(st.integers(1, len(shape) - 1)))
        elif change == "cut" and shape:
            tensor = tensor[1::2]
        elif change == "split" and shape:
            state[f"{i}.half"], tensor = tensor[:2], tensor[2:]
        elif change == "tie":
            state[f"{i}.tied"] = tensor
        elif change == "parameter" and tensor.is_floating_point():
            tensor = torch.nn.Parameter(tensor)
        state[draw(st.text(max_size=3).filter(str.isprintable)) + str(i)] = tensor
    return state


@settings(deadline=None, max_examples=150, suppress_health_check=[*HealthCheck])
@given(state=states(), is_zip=st.booleans())
def test_any_state_comes_back(state, is_zip, tmp_path):
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    same_as_torch(tmp_path / "a.pt")


def test_directories_of_64_bits(tmp_path, monkeypatch):
    """Those of files above 4 GB, here written by Python's zip library as if 1 KB were as much."""
    torch.save(writer().content(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 30)
    (tmp_path / "b.pt").write_bytes(made.zipped(files))
    assert (tmp_path / "b.pt").read_bytes().count(b"PK\6\6") == 1
    ours, theirs = read_pickle(tmp_path / "b.pt")[0], read_pickle(tmp_path / "a.pt")[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_storages_of_old_files_can_be_views(tmp_path):
    """The format of 2017 allows for it. torch has not written any since, so this one is ours."""
    view = b"(" + made.text("x") + made.number(2) + made.number(3) + b"t"
    store = made.storage(6, tail=view)
    whole = made.tensor(made.storage(6, tail=b"N"), (6,), (1,))
    program = made.entries(a=made.tensor(store, (2,), (1,), 1), b=whole)
    data = (6).to_bytes(8, "little") + np.arange(6, dtype="f4").tobytes()
    (tmp_path / "a.pt").write_bytes(made.legacy(program, ["0"], data))
    assert same_as_torch(tmp_path / "a.pt")["a"].tolist() == [3, 4]
    beyond = made.storage(6, tail=view.replace(made.number(3) + b"t", made.number(5) + b"t"))
    program = made.entries(a=made.tensor(beyond, (2,), (1,)))
    (tmp_path / "a.pt").write_bytes(made.legacy(program, ["0"], data))
    with pytest.raises(CheckpointError, match="no storage"):
        read_pickle(tmp_path / "a.pt")


@linux
def test_tensors_lie_in_the_mapped_file(tmp_path):
    state = {f"t{i}": torch.full((10**5,), i) for i in range(20)}
    torch.save(state, tmp_path / "a.pt")
    ours, _ = read_pickle(tmp_path / "a.pt")
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in lines if line.endswith("a.pt")]
    low, high = (int(end, 16) for end in ends[0])
    assert all(low <= tensor.data_ptr() < high for tensor in ours.values())
    before = (tmp_path / "a.pt").read_bytes()
    ours["t3"].fill_(7)  # the mapping is private
    assert (tmp_path / "a.pt").read_bytes() == before


def test_the_copy_has_tied_tensors_once(tmp_path):
    table = torch.randn(1000)
    torch.save({name: table for name in "abcdef"} | {"g": torch.ones(2)}, tmp_path / "a.pt")
    first, _ = read_any(tmp_path / "a.pt", tmp_path)
    again, metadata = read_any(tmp_path / "a.pt", tmp_path)
    assert first.keys() == again.keys() == set("abcdefg")
    assert metadata == {}
    assert all(torch.equal(again[name], table) for name in "abcdef")
    (copy,) = (tmp_path / "minibark").iterdir()
    whole = copy.read_bytes()
    assert len(whole) < 2 * 4000
    copy.write_bytes(whole.replace(rb"\"b\": \"a\"", rb"\"b\": \"z\""))  # damaged: made anew
    assert copy.read_bytes() != whole
    assert read_any(tmp_path / "a.pt", tmp_path)[0].keys() == set("abcdefg")
    # safetensors writes its metadata in any order
    assert sorted(copy.read_bytes()) == sorted(whole)


# ---- what is refused ----

ONE = made.entries(a=made.floats(4))
REFUSED = {
    "opcode": (b"}(1" + ONE, "opcode b'1'"),
    "long of 4 bytes of length": (b"\x8b\1\0\0\0\1", "opcode"),
    "another protocol": (b"\x80\4" + ONE, "protocol 4"),
    "class": (b"cos\nsystem\n", "refused: os.system"),
    "class with a dot": (b"cos\npath.join\n", "refused: os.path.join"),
    "function of ours": (b"cminibark.files\nread_json\n", "refused: minibark.files.read_json"),
    "call of a value": (b"}K\1\x85R", "otherwise than torch"),
    "call of a class that is none": (made.text("os.system") + b")R", "otherwise than torch"),
    "object": (made.GLOBALS["FloatStorage"] + b")\x81", "otherwise than torch"),
    "arguments of a dictionary": (made.called("OrderedDict", b"]"), "otherwise than torch"),
    "encoding": (
        made.called("encode", made.text("a"), made.text("hex")),
        "otherwise than torch",
    ),
    "attributes": (made.floats(4) + b"}b", "wrong before byte"),
    "key": (b"}" + made.floats(4) + b"Ns", "key of type View"),
    "key that is true": (b"}\x88Ns", "key of type bool"),
    "large key": (b"}" + made.number(2**61 - 1) + b"Ns", "too large"),
    "key alone": (b"}(K\1u", "wrong before byte"),
    "item of no dictionary": (b"]K\1K\2s", "wrong before byte"),
    "item of no list": (b"}K\1a", "wrong before byte"),
    "no mark": (b"}t", "wrong before byte"),
    "nothing there": (b"\x87", "wrong before byte"),
    "not in the memo": (b"h\0", "wrong before byte"),
    "two values": (b"}}", "wrong before byte"),
    "no value": (b"", "wrong before byte"),
    "text": (b"X\1\0\0\0\xff", "not UTF-8"),
    "name without an end": (b"ctorch", "cut short"),
    "text without an end": (b"X\xff\xff\xff\xff", "cut short"),
    "number": (b"K\1", "not a dictionary of tensors"),
    "nothing": (b"}", "not a dictionary of tensors"),
    "list": (b"]", "not a dictionary of tensors"),
    "value among tensors": (made.entries(a=made.floats(4), b=b"N"), "not a dictionary of tensors"),
    "storage": (made.entries(a=made.storage(4)), "not a dictionary of tensors"),
    "persistent": (b"(K\1K\2tQ", "no storage"),
    "persistent module": (b"(" + made.text("module") + b"NNNNtQ", "no storage"),
    "class of storage": (b"(" + made.storage(4, kind="dtype")[1:], "no storage"),
    "size of storage": (made.entries(a=made.tensor(made.storage(-1), (), ())), "no storage"),
    "complex": (b"ctorch\nComplexFloatStorage\n", "refused: torch.ComplexFloatStorage"),
    "name of a tensor": (b"}K\1" + made.floats(4) + b"s", "is named 1"),
    "long name": (b"}" + made.text("x" * 201) + made.floats(4) + b"s", "is named x{197}"),
    "name on two lines": (b"}" + made.text("a\nb") + made.floats(4) + b"s", r"is named a\\nb"),
    "no such storage": (
        made.entries(a=made.tensor(made.storage(4, "9"), (4,), (1,))),
        "not all there",
    ),
    "larger storage": (made.entries(a=made.tensor(made.storage(5), (4,), (1,))), "not all there"),
    "smaller storage": (made.entries(a=made.tensor(made.storage(3), (3,), (1,))), "not all there"),
    "two types": (
        made.entries(a=made.floats(4), b=made.tensor(made.storage(16, kind="BoolStorage"), (), ())),
        "two types",
    ),
    "repeated": (made.entries(a=made.tensor(made.storage(4), (5,), (0,))), "repeats few values"),
    "beyond": (made.entries(a=made.tensor(made.storage(4), (4,), (1,), 1)), "beyond"),
    "far beyond": (made.entries(a=made.tensor(made.storage(4), (2,), (2**80,))), "beyond"),
    "negative offset": (made.entries(a=made.tensor(made.storage(4), (1,), (1,), -1)), "no tensor"),
    "negative stride": (made.entries(a=made.tensor(made.storage(4), (2,), (-1,))), "no tensor"),
    "negative size": (made.entries(a=made.tensor(made.storage(4), (-1,), (1,))), "no tensor"),
    "large and empty": (
        made.entries(a=made.tensor(made.storage(4), (0, 2**40, 2**40), (1, 1, 1))),
        "no tensor",
    ),
    "more strides": (made.entries(a=made.tensor(made.storage(4), (1,), (1, 1))), "otherwise"),
    "dimensions": (made.entries(a=made.tensor(made.storage(4), (1,) * 9, (1,) * 9)), "otherwise"),
    "size of nothing": (
        made.entries(a=made.tensor(made.storage(4), (1,), (1,)).replace(b"(K\1t", b"(Nt")),
        "otherwise",
    ),
    **{
        f"model_args of {value!r}": (made.entries(model=ONE, model_args=value), "model_args")
        for value in (b"N", b"]", made.entries(x=b"]"), made.entries(x=made.floats(4)), b"}K\1Ns")
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_programs_that_are_refused(case, tmp_path):
    program, text = REFUSED[case]
    (tmp_path / "a.pt").write_bytes(made.archive(program, {"0": bytes(16)}))
    with pytest.raises(CheckpointError, match=rf"^[^\n]*a\.pt is damaged [^\n]*({text})"):
        read_pickle(tmp_path / "a.pt")


def test_the_program_of_these_tests_is_read(tmp_path):
    (tmp_path / "a.pt").write_bytes(made.archive(ONE, {"0": bytes(16)}))
    assert read_pickle(tmp_path / "a.pt")[0]["a"].tolist() == [0.0] * 4


def renamed(old: bytes, new: bytes, n_times: int = -1):
    return lambda whole: whole.replace(old, new, n_times)


WHOLE = made.archive(ONE, {"0": bytes(16), "1": bytes(16)})
FILES = {
    "empty": (lambda whole: b"", "empty"),
    "text": (lambda whole: b"<html>", "opcode"),
    "no end": (lambda whole: whole[:-1], "without its end"),
    "more": (lambda whole: whole + b"PK\5\6", "without its end"),
    "beginning only": (lambda whole: b"PK\3\4", "without its end"),
    "end only": (lambda whole: b"PK\3\4" + whole[-22:], "directory is too large"),
    "no program": (renamed(b"data.pkl", b"data.pk1"), r"no data\.pkl"),
    "big-endian": (renamed(b"little", b"biggie"), "little-endian"),
    "two of a name": (renamed(b"data/1", b"data/0"), "two files data/0"),
    "another name in front": (renamed(b"data/1", b"data/2", 1), "directory is wrong"),
    "another file in front": (renamed(b"PK\3\4", b"PK\3\5", 2), "opcode|directory is wrong"),
    "encrypted": (lambda whole: encrypted(whole), "compressed"),
    "cut in the middle": (lambda whole: whole[:99] + whole[199:], "directory|cut short|length"),
}


def encrypted(whole: bytes) -> bytes:
    at = whole.index(b"PK\1\2") + 8
    return whole[:at] + b"\1" + whole[at + 1 :]


@pytest.mark.parametrize("case", FILES)
def test_archives_that_are_refused(case, tmp_path):
    change, text = FILES[case]
    (tmp_path / "a.pt").write_bytes(change(WHOLE))
    with pytest.raises(CheckpointError, match=rf"a\.pt is damaged .*({text})"):
        read_pickle(tmp_path / "a.pt")


OLD_ONE = made.entries(a=made.tensor(made.storage(4, tail=b"N"), (4,), (1,)))
LEGACY = (4).to_bytes(8, "little") + bytes(16)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (made.legacy(OLD_ONE, ["0"], LEGACY[:-1]), "not all there"),
        (made.legacy(OLD_ONE, ["0"], LEGACY[:7]), "cut short"),
        (made.legacy(OLD_ONE, [], LEGACY), "not all there"),
        (made.legacy(OLD_ONE, ["0", "0"], LEGACY * 2), "list of storages"),
        (made.legacy(OLD_ONE, ["0", "1"], LEGACY * 2), "list of storages"),
        (made.legacy(OLD_ONE, [0], LEGACY), "list of storages"),
        (made.legacy(OLD_ONE, ["0"], (5).to_bytes(8, "little") + bytes(20)), "not all there"),
        (made.legacy(OLD_ONE, ["0"], b"\xff" * 8 + bytes(16)), "not all there"),
        (pickle.dumps({"a": 1}, 2), "does not begin as"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2) * 4, "1001"),
    ],
)
def test_legacy_files_that_are_refused(content, text, tmp_path):
    (tmp_path / "a.pt").write_bytes(made.legacy(OLD_ONE, ["0"], LEGACY))
    assert same_as_torch(tmp_path / "a.pt")["a"].shape == (4,)
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pt is damaged .*({text})"):
        read_pickle(tmp_path / "a.pt")


def nested(n_files: int, shift: int) -> bytes:
    """An archive in which each storage has all further ones inside, and a tensor of one number.

    Storages begin at multiples of four bytes and `shift`.
    """
    views = {f"t{i}": made.storage(n_floats(i, n_files), f"{i:03}") for i in range(n_files)}
    program = made.entries(**{name: made.tensor(view, (1,), (1,)) for name, view in views.items()})
    program = b"\x80\x02" + program + b"."
    files = {"a/data.pkl": program + bytes((shift - len(program)) % 4)}  # 40 bytes are in front
    names = [*files, *(f"a/data/{i:03}" for i in range(n_files))]
    whole, offsets, sizes = b"", [], [len(files["a/data.pkl"])]
    sizes += [4 * n_floats(i, n_files) for i in range(n_files)]
    for name, size in zip(names, sizes, strict=True):
        offsets.append(len(whole))
        whole += struct.pack("<4s5H3I2H", b"PK\3\4", *[0] * 6, size, size, len(name), 0)
        whole += name.encode() + files.get(name, b"")
    whole += bytes(4 * n_floats(n_files - 1, n_files))
    start = len(whole)
    for name, size, offset in zip(names, sizes, offsets, strict=True):
        entry = struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", *[0] * 7, size, size, len(name), *[0] * 5, offset
        )
        whole += entry + name.encode()
    n_bytes = len(whole) - start
    return whole + struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, len(names), len(names), n_bytes, start, 0
    )


def n_floats(place: int, n_files: int) -> int:
    return 1000 + (n_files - 1 - place) * (30 + len("a/data/000")) // 4


@pytest.mark.parametrize(("n_files", "shift"), [(1, 0), (1, 3), (100, 0), (2, 3), (100, 3)])
def test_storages_inside_each_other_are_not_copied_for_each(n_files, shift, tmp_path):
    """They are where they do not begin as their numbers must, and only there."""
    path = tmp_path / "a.pt"
    path.write_bytes(nested(n_files, shift))
    assert path.read_bytes().index(b"/data/000") % 4 == (shift + 31) % 4
    if n_files == 1 or shift == 0:
        assert read_pickle(path)[0]["t0"].shape == (1,)
    else:
        with pytest.raises(CheckpointError, match="together they exceed"):
            read_pickle(path)


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "a.pt")
    with pytest.raises(IsADirectoryError):
        read_pickle(tmp_path)


def test_classes_are_not_looked_up(tmp_path, monkeypatch):
    """A name stands for itself, whatever there is under it."""
    monkeypatch.setattr(torch._utils, "_rebuild_tensor_v2", os.abort)
    monkeypatch.setattr(torch, "FloatStorage", os.abort)
    torch.save(OrderedDict(a=torch.ones(1)), tmp_path / "b.pt")
    (tmp_path / "a.pt").write_bytes(made.archive(ONE, {"0": bytes(16)}))
    assert read_pickle(tmp_path / "a.pt")[0]["a"].tolist() == [0.0] * 4


# ---- damage ----


def read_or_refuse(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    try:
        state, metadata = read_pickle(path)
    except CheckpointError as error:
        assert len(str(error)) < 1500
        assert str(error).isprintable()
    else:
        unique = {id(tensor): tensor.nbytes for tensor in state.values()}
        assert sum(unique.values()) <= len(content)
        assert all(isinstance(value, str) for value in metadata.values())


OPCODES = st.sampled_from([bytes([code]) for code in b"N\x88\x89}])(t\x85\x86\x87QaesuRb\x81."])
PIECES = st.one_of(
    OPCODES,
    st.sampled_from(list(made.GLOBALS.values())),
    st.integers(-(2**70), 2**70).map(made.number),
    st.text(max_size=4).map(made.text),
    st.integers(0, 3).map(lambda place: b"q" + bytes([place])),
    st.integers(0, 3).map(lambda place: b"h" + bytes([place])),
    st.integers(0, 9).map(made.floats),
    st.integers(0, 9).map(made.storage),
    st.binary(max_size=5),
)


@settings(deadline=2000, max_examples=400, suppress_health_check=[*HealthCheck])
@given(pieces=st.lists(PIECES, max_size=12), is_zip=st.booleans())
def test_any_program_is_read_or_refused(pieces, is_zip, tmp_path):
    program = b"".join(pieces)
    whole = made.archive(program, {"0": bytes(16)}) if is_zip else made.legacy(program, ["0"])
    read_or_refuse(whole, tmp_path / "a.pt")


@settings(deadline=2000, max_examples=400, suppress_health_check=[*HealthCheck])
@given(seed=st.integers(0, 2**32), file=st.sampled_from(sorted(OLD.glob("*.pt"))))
def test_damaged_files_are_read_or_refused(seed, file, tmp_path):
    read_or_refuse(made.damage(file.read_bytes(), Random(seed)), tmp_path / "a.pt")


HEAVY = """
import resource, sys, time
from pathlib import Path
from minibark.checkpoint.pickles import Machine
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
bodies = sys.stdin.buffer.read().split(b"|")
for body in bodies:
    head, _, body = body.partition(b"~")
    start = time.monotonic()
    try:
        Machine(head + body * ((1 << 22) // len(body)) + b".").run()
    except ValueError as error:
        pass
    seconds = time.monotonic() - start
    print(seconds, Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.torture
@linux
def test_long_programs_take_little():
    """Each fills what a program may have with what costs most a byte."""
    bodies = [b"~}", b"~]", b"~(", b"~N\x85", b"N~\x85", b"~]\x85", b"~]Na", b"~}K\0Ns"]
    bodies += [b"N~(h\0h\0t", made.GLOBALS["dtype"] + b"q\0~h\0)R", b"~" + made.number(2**2030)]
    size = b"q\1K\1\x85q\2"  # a storage, then views of it
    bodies += [
        made.GLOBALS["_rebuild_tensor_v2"]
        + b"q\0"
        + made.storage(1)
        + size
        + b"~h\0(h\1K\0h\2h\2tR"
    ]
    args = b"(" + b"N" * 250_000 + b"tq\0"  # many arguments, of many calls
    bodies.append(args + made.GLOBALS["dtype"] + b"q\1~h\1h\0R")
    run = [sys.executable, "-P", "-c", HEAVY]
    result = subprocess.run(run, input=b"|".join(bodies), capture_output=True, timeout=100)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == len(bodies)
    for seconds, kilobytes in lines:
        assert float(seconds) < 5
        assert int(kilobytes) < 7e5  # torch itself takes a third of it


def test_what_a_machine_takes_is_bounded_by_its_opcodes():
    with pytest.raises(ValueError, match="over 524,288 opcodes"):
        Machine(b"N" * MAX_PROGRAM_BYTES).run()
    stream = io.BytesIO()
    torch.save({f"t{i}": torch.ones(1) for i in range(5000)}, stream)
    with zipfile.ZipFile(stream) as archive:
        assert len(Machine(archive.read("archive/data.pkl")).run()) == 5000
