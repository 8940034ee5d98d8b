"""Hostile input for `test_hostile.py`, `test_pickles.py` and `torture/fuzz.py`.

Whole files damaged at random, pickle programs made at random, and known bombs.
"""

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from random import Random

import torch

JUNK = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31, 2**63, 10**12, 10**30, -(10**12)),
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "", "x", "F32", "I64", "\0", "é" * 99),
    *("../x", "/etc/passwd", "a\\b", "C:x", "x" * 5000, [], {}, [[[]]], {"a": {"b": None}}),
    *([0] * 1000, [1, -1], [10**12] * 3, [2**62, 4], ["a"]),
]
JUNK_JSON = [*map(json.dumps, JUNK), "[" * 500 + "]" * 500]


def damage(content: bytes, random: Random) -> bytes:
    """Content with a few bytes changed, cut out, put in, doubled or moved."""
    result = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        if not result:
            break
        start = random.randrange(len(result))
        size = random.choice([1, 1, 2, 4, 8, 40])
        kind = random.randrange(8)
        if kind <= 2:
            result[start] ^= 1 << random.randrange(8)
        elif kind == 3:
            result[start] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 4:
            del result[start : start + size]
        elif kind == 5:
            result[start:start] = random.randbytes(size)
        elif kind == 6:
            result[start:start] = result[start : start + size]
        else:
            del result[start:]
    return bytes(result)


def damage_json(document: object, random: Random) -> object:
    """A document in which something is replaced, left out, renamed or put in."""
    document = copy.deepcopy(document)
    for _ in range(random.choice([1, 1, 2, 4])):
        places = list(containers(document))
        if not places:
            return junk(random)
        place = random.choice(places)
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = random.randrange(10)
        if kind <= 5:
            place[key] = junk(random)
        elif kind == 6:
            del place[key]
        elif kind == 7 and isinstance(place, dict):
            place[random.choice(["x", "a.b", "../y", "", *place])] = place.pop(key)
        elif kind == 8 and isinstance(place[key], (int, float)):
            place[key] = random.choice([place[key] + 1, -place[key], place[key] * 2, 0])
        else:
            place[key] = {"x": place[key]}
    return junk(random) if random.random() < 0.02 else document


def junk(random: Random) -> object:
    return json.loads(random.choice(JUNK_JSON))


def containers(document: object, depth: int = 0) -> Iterator[dict | list]:
    """The filled dictionaries and lists in a document."""
    if isinstance(document, (dict, list)) and document and depth < 9:
        yield document
        for inner in document.values() if isinstance(document, dict) else document[:20]:
            yield from containers(inner, depth + 1)


def as_json(document: object, random: Random) -> bytes:
    text = json.dumps(document).encode()
    return damage(text, random) if random.random() < 0.2 else text


def zipped(content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_file(content: object, is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


# ---- pickle programs ----

GLOBALS = {
    name: f"c{module}\n{name}\n".encode()
    for module, names in {
        "torch": "FloatStorage LongStorage BoolStorage BFloat16Storage FloatTensor",
        "torch.storage": "UntypedStorage",
        "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter _rebuild_sparse_tensor",
        "torch.nn.parameter": "Parameter",
        "collections": "OrderedDict",
        "numpy": "dtype ndarray",
        "numpy._core.multiarray": "scalar _reconstruct",
        "_codecs": "encode",
        "builtins": "set bytearray eval",
        "os": "system",
    }.items()
    for name in names.split()
}


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(size: int, key: str = "0", kind: str = "FloatStorage", tail: bytes = b"") -> bytes:
    parts = (text("storage"), GLOBALS[kind], text(key), text("cpu"), number(size), tail)
    return b"(" + b"".join(parts) + b"tQ"


def tensor(store: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    head = GLOBALS["_rebuild_tensor_v2"] + b"("
    return head + store + number(offset) + numbers(shape) + numbers(stride) + b"\x89NtR"


def floats(n_floats: int) -> bytes:
    """A tensor of that many floats over the whole of storage 0."""
    return tensor(storage(n_floats), (n_floats,), (1,))


def entries(**items: bytes) -> bytes:
    """A dictionary of what programs make."""
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def archive(
    program: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    """A checkpoint as torch's zip file, with this pickle program."""
    files = {"data.pkl": b"\x80\x02" + program + b".", "version": b"3\n", "byteorder": b"little"}
    files |= {f"data/{key}": data for key, data in (records or {}).items()}
    return zipped({f"archive/{name}": data for name, data in files.items()}, method)


def legacy(program: bytes, keys: list[str], data: bytes = b"") -> bytes:
    """A checkpoint as of torch before 1.6, with this pickle program."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    start = b"".join(pickle.dumps(value, 2) for value in head)
    return start + b"\x80\x02" + program + b"." + pickle.dumps(keys, 2) + data


def random_value(random: Random, depth: int = 0) -> bytes:
    """Opcodes that leave one value, mostly of those that torch writes."""
    size = random.choice([0, 1, 2, 3, 4, 7, 10**9])
    leaves: list[Callable[[], bytes]] = [
        lambda: random.choice([b"N", b"\x88", b"\x89", b"}", b"]", b")"]),
        lambda: number(random.choice([0, 1, 2, 255, 256, -1, 2**31, 2**63, -(2**200)])),
        lambda: b"G" + random.randbytes(8),
        lambda: text(random.choice(["", "a", "model", "model_args", "é", "storage", "latin1"])),
        lambda: random.choice(list(GLOBALS.values())),
        lambda: b"h" + bytes([random.randrange(4)]),
        lambda: floats(random.choice([4, 4, 4, 3, 5, 0, 2**40])),
        lambda: tensor(storage(4), (size, 1), (random.choice([0, 1, -1, 2**70]), 1), size),
        lambda: storage(size, random.choice("01"), random.choice(list(GLOBALS))),
    ]
    if depth > 4 or random.random() < 0.5:
        value = random.choice(leaves)()
    else:
        inner = [random_value(random, depth + 1) for _ in range(random.randrange(5))]
        value = random.choice(
            [
                lambda: b"(" + b"".join(inner) + b"t",
                lambda: b"](" + b"".join(inner) + b"e",
                lambda: b"}(" + b"".join(text(f"k{i}") + v for i, v in enumerate(inner)) + b"u",
                lambda: b"}(" + b"".join(inner) + b"u",
                lambda: random.choice(list(GLOBALS.values())) + b"(" + b"".join(inner) + b"tR",
                lambda: GLOBALS["_rebuild_parameter"] + b"(" + floats(4) + b"".join(inner) + b"tR",
                lambda: GLOBALS["OrderedDict"] + b")R" + b"".join(inner[:1] or [b"}"]) + b"b",
                lambda: b"".join(inner) + random.choice([b"\x85", b"\x86", b"\x87"]),
                lambda: b"(" + b"".join(inner) + b"tQ",
            ]
        )()
    return value + (b"q" + bytes([random.randrange(4)]) if random.random() < 0.3 else b"")


def random_program(random: Random) -> bytes:
    """A program that makes a dictionary, at times damaged or of nothing but random opcodes."""
    kind = random.randrange(8)
    if kind == 0:
        opcodes = b"N\x88\x89}])(t\x85\x86\x87Q" + b"aesuRb\x81.KMJXUhqjrcG\x8a\x80012\x90\x95"
        return bytes(random.choices(opcodes, k=random.randrange(1, 60)))
    items = {f"t{i}": random.choice([floats(4), random_value(random)]) for i in range(3)}
    program = entries(**items)
    if kind == 1:
        program = entries(model=program, model_args=entries(a=random_value(random)))
    return damage(program, random) if kind < 5 else program


def random_pickle(random: Random) -> bytes:
    """A checkpoint file with such a program."""
    program = random_program(random)
    if random.random() < 0.3:
        return legacy(
            program, random.choice([["0"], [], ["0", "1"]]), (4).to_bytes(8, "little") + bytes(16)
        )
    return archive(program, {"0": bytes(16), "1": bytes(8)})


# ---- bombs ----


def doubled(value: bytes, n_times: int) -> bytes:
    """A value put into a pair with itself, again and again."""
    return value + b"q\0h\0\x86" * n_times


def suno(model_args: bytes) -> bytes:
    """A checkpoint of Suno's whose model_args has the value."""
    program = entries(model=entries(a=floats(1)), model_args=entries(x=model_args))
    return archive(program, {"0": bytes(4)})


def hexed() -> bytes:
    """Text encoded in hexadecimal, and that again, 30 times over."""
    first = GLOBALS["encode"] + b"q\1" + text("aaaa") + text("latin1") + b"\x86R"
    return archive(first + (b"q\2h\1h\2" + text("hex") + b"\x86R") * 30)


def false_end() -> bytes:
    """Compressed zeros, and an end of the archive that hides how they are stored."""
    n_floats = 1 << 24
    return archive(entries(a=floats(n_floats)), {"0": bytes(4 * n_floats)}, 8) + b"PK\5\6"


def bz2_voice() -> bytes:
    """An array of 256 MB in a few hundred bytes."""
    buffer = io.BytesIO()
    info = zipfile.ZipInfo("semantic_prompt.npy")
    info.compress_type = zipfile.ZIP_BZIP2
    with zipfile.ZipFile(buffer, "w") as file, file.open(info, "w") as member:
        for _ in range(16):
            member.write(bytes(1 << 24))
    return buffer.getvalue()


def called(name: str, *args: bytes) -> bytes:
    return GLOBALS[name] + b"(" + b"".join(args) + b"tR"


CHECKPOINTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deep key": (lambda: archive(b"}N" + b"\x85" * 300_000 + b"Ns"), "key of type tuple"),
    "doubled key": (lambda: archive(b"}" + doubled(b")", 50) + b"Ns"), "key of type tuple"),
    "doubled arguments": (lambda: suno(doubled(b"]", 40)), "model_args x is no plain value"),
    "storage": (lambda: suno(called("UntypedStorage", number(1 << 30))), "otherwise than torch"),
    "set": (
        lambda: archive(called("set", called("bytearray", number(2**31 - 1)))),
        "refused: builtins.set",
    ),
    "hexadecimal": (hexed, "otherwise than torch"),
    "legacy storage": (
        lambda: legacy(entries(a=tensor(storage(2**31), (2**31,), (1,))), []),
        "numbers of a are not all there",
    ),
    "legacy resized": (
        lambda: legacy(entries(a=tensor(storage(2**31), (2**31 + 1,), (1,))), []),
        "repeats few values",
    ),
    "tensor of a size": (
        lambda: archive(entries(a=called("FloatTensor", number(2**29)))),
        "refused: torch.FloatTensor",
    ),
    "overlapping views": (
        lambda: archive(
            entries(**{f"t{i}": tensor(storage(10**6), (10**6 - i,), (1,), i) for i in range(800)}),
            {"0": bytes(4 * 10**6)},
        ),
        "together they exceed the file",
    ),
    "false end": (false_end, "zip archive without its end"),
    "nested tensor": (
        lambda: torch_file({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, True),
        "refused: torch._utils._rebuild_nested_tensor",
    ),
    "surrogate": (lambda: torch_file({"\ud800": torch.ones(1)}, True), "not UTF-8"),
    "escapes": (
        lambda: torch_file({"\x1b[2J" + "x" * 70_000: torch.ones(1)}, True),
        r"is named \x1b[2Jxxx",
    ),
}
"""Checkpoints of a few kilobytes that broke readers, and what is said of them."""

OTHERS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "voice": ("v.npz", bz2_voice, "compressed otherwise than NumPy"),
    "json": ("config.json", lambda: b"[" + b"[]," * 6_000_000 + b"[]]", "larger than 16 MiB"),
    "vocabulary": (
        "vocab.txt",
        lambda: b"".join(b"%d\n" % i for i in range(2_300_000)),
        "larger than 16 MiB",
    ),
}
