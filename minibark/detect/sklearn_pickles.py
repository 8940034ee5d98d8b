"""scikit-learn's logistic regression out of its pickle: nothing in the file is executed.

The machine of `checkpoint/pickles.py`, with the opcodes of all protocols and a list of names of its
own: the classifier, NumPy's arrays and numbers, and what protocols 0 and 1 make objects with. Bytes
stay where they are until they are asked for, so that a small program still takes little.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint.pickles import MAX_PROGRAM_BYTES, Machine, Name
from ..config import CheckpointError
from ..files import naming, shown
from .classifier import Classifier

_REGRESSION = "sklearn.linear_model._logistic.LogisticRegression"
_REBUILD = ("copy_reg._reconstructor", "copyreg._reconstructor")
_OBJECT = ("__builtin__.object", "builtins.object")
_BYTES = ("__builtin__.bytes", "builtins.bytes", "__builtin__.bytearray", "builtins.bytearray")
_ENCODE = "_codecs.encode"
_DTYPE, _ARRAY = "numpy.dtype", "numpy.ndarray"
_CORES = ("numpy.core", "numpy._core")
_NEW_ARRAY = tuple(f"{core}.multiarray._reconstruct" for core in _CORES)
_SCALAR = tuple(f"{core}.multiarray.scalar" for core in _CORES)
_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in _CORES)
_NAMES = frozenset(
    (
        *(_REGRESSION, *_REBUILD, *_OBJECT, *_BYTES, _ENCODE),
        *(_DTYPE, _ARRAY, *_NEW_ARRAY, *_SCALAR, *_BUFFER),
    )
)
_TEXTS = {b"\x8c": "<B", b"\x8d": "<Q"}
_BINARY = {b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_COMPRESSED = (b"x", b"\x1f\x8b", b"BZ", b"\xfd7zXZ", b"]\0\0", b"PK")  # as joblib writes it too
_DTYPES = frozenset(("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"))
_LARGEST = 1 << 16  # features, far above every HuBERT's


class _Encoded(NamedTuple):
    """Bytes that an old protocol wrote as text."""

    text: str


class _Dtype:
    """A type of numbers: `kind` as NumPy writes it, `f8`, and the order of its bytes."""

    def __init__(self, kind: str) -> None:
        self.kind, self.order = kind, "|"


class _Array:
    """An array, or a number, that nothing has been made of yet."""

    def __init__(self, dtype: Any = None, shape: Any = (), content: Any = b"") -> None:
        self.dtype, self.shape, self.content = dtype, shape, content


class _Object:
    """An instance of the classifier: its attributes."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}


_KINDS: dict[type, str] = {
    type(None): "None",
    _Array: "an array",
    _Dtype: "a type of NumPy's",
    Name: "the name of a class or function",
    bool: "True or False",
    int: "an int",
    float: "a number",
    str: "a text",
    bytes: "bytes",
    _Encoded: "bytes",
    list: "a list",
    tuple: "a tuple",
    dict: "a dict",
}


class _SklearnMachine(Machine):
    """A program as scikit-learn's users have Python write it."""

    names = _NAMES
    protocols = range(6)
    keys = (_Array, bool)  # of `class_weight`; the former's hash is its place in memory
    writer = "Python's pickle"
    holds = "a logistic regression of scikit-learn"

    def step(self, opcode: bytes) -> None:
        """As the base class, with the opcodes of protocols 0, 1 and 3 to 5."""
        stack = self.stack
        match opcode:
            case b"I":
                text = self.line()
                stack.append(text == "01" if text in ("00", "01") else int(text))
            case b"L":
                stack.append(int(self.line().removesuffix("L")))
            case b"F":
                stack.append(float(self.line()))
            case b"V":
                stack.append(self.line("raw-unicode-escape"))
            case b"p":
                self.memo[int(self.line())] = stack[-1]
            case b"g":
                stack.append(self.memo[int(self.line())])
            case b"d":
                items = self.pop_from(self.marks.pop())
                stack.append({})
                if items:
                    self.marks.append(len(stack))
                    stack.extend(items)
                    super().step(b"u")
            case b"l":
                stack.append(self.pop_from(self.marks.pop()))
            case b"\x95":
                self.number("<Q")  # a frame: how far to read ahead
            case b"\x8b":
                stack.append(int.from_bytes(self.take(self.number("<I")), "little", signed=True))
            case b"\x94":
                self.memo[len(self.memo)] = stack[-1]
            case b"\x93":
                module, name = self.pop_from(len(stack) - 2)
                if type(module) is not str or type(name) is not str:
                    raise TypeError
                stack.append(self.named(module, name))
            case _ if opcode in _TEXTS:
                stack.append(self.take(self.number(_TEXTS[opcode])).decode("utf-8"))
            case _ if opcode in _BINARY:
                stack.append(self.take(self.number(_BINARY[opcode])))
            case b"Q":
                raise ValueError("it has a persistent id, which is refused")
            case _:
                super().step(opcode)

    def called(self, name: object, args: object) -> Any:
        """What stands for the value that a function of this name would return."""
        if type(name) is Name and type(args) is tuple:
            match (str(name), args):
                case (n, ()) if n == _REGRESSION:
                    return _Object()
                case (n, (kind, base, None)) if n in _REBUILD:
                    if kind == _REGRESSION and base in _OBJECT:
                        return _Object()
                case (n, ()) if n in _BYTES:
                    return b""
                case (n, (str(text), "latin1")) if n == _ENCODE:
                    return _Encoded(text)
                case (n, (str(kind), *_)) if n == _DTYPE:
                    return _Dtype(kind)
                case (n, _) if n in _NEW_ARRAY:
                    return _Array()
                case (n, (_Dtype() as dtype, content)) if n in _SCALAR:
                    return _Array(dtype, (), content)
                case (n, (content, _Dtype() as dtype, tuple() as shape, *_)) if n in _BUFFER:
                    return _Array(dtype, shape, content)
        raise ValueError("it calls a function otherwise than scikit-learn's pickles do")

    def built(self, target: Any, state: Any) -> None:
        """Let an array, a type or the classifier have what the program says of it."""
        match (target, state):
            case (_Object(), dict()):
                target.fields = state
            case (_Dtype(), (int(), str(order), *_)):
                target.order = order
            case (_Array(), (int(), tuple() as shape, _Dtype() as dtype, _, content)):
                target.shape, target.dtype, target.content = shape, dtype, content
            case _:
                raise TypeError


def import_classifier(path: Path) -> Classifier:
    """The classifier in a pickle of scikit-learn's `LogisticRegression`, 0.24 or later.

    Raises:
        CheckpointError: damaged, or holding anything else; the text names the file and what.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise CheckpointError(f"{shown(path, 1000)} is a folder; name the pickle in it")
    with path.open("rb") as file:
        code = file.read(MAX_PROGRAM_BYTES + 1)
    with naming(path):
        if len(code) > MAX_PROGRAM_BYTES:
            raise ValueError(f"larger than {MAX_PROGRAM_BYTES >> 20} MiB, as no such classifier is")
        if code[8:10] == b'{"' and int.from_bytes(code[:8], "little") < 1 << 24:
            raise ValueError("it is a safetensors file already; give it to --classifier")
        if code.startswith(_COMPRESSED):
            raise ValueError("it is compressed; write it anew with pickle.dump")
        found = _SklearnMachine(code).run()
        if not isinstance(found, _Object):
            kind = _KINDS.get(type(found), "something else")
            raise ValueError(f"it holds {kind}, not scikit-learn's LogisticRegression")
        return _classifier(found.fields)


def _classifier(fields: dict[str, Any]) -> Classifier:
    missing = {"classes_", "coef_", "intercept_"} - set(fields)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}: it was not fitted")
    match fields["classes_"]:
        case _Array(dtype=_Dtype(kind=kind)) if kind[:1] in ("U", "S", "O"):
            raise ValueError(
                "its classes are names; they must be 0 and 1, since which of two names is Bark "
                "cannot be known. Fit it again with labels 0 (not Bark) and 1 (Bark)"
            )
    classes, weight, bias = (_numbers(fields, n) for n in ("classes_", "coef_", "intercept_"))
    # The greater is scikit-learn's positive class, of which `predict_proba` tells in column 1.
    if len(classes) != 2 or classes[0] >= classes[1] or classes[1] != 1:
        raise ValueError(
            "its classes must be two numbers of which the greater is 1, for Bark, as 0 and 1 are; "
            "they are "
            f"{shown(', '.join(f'{value:g}' for value in classes[:9]))}"
        )
    if weight.ndim != 2 or len(weight) != 1 or bias.shape != (1,):
        raise ValueError(
            f"coef_ must be (1, C) and intercept_ (1,), got {weight.shape} and {bias.shape}"
        )
    # Two classes under the softmax of -d and d are one under the sigmoid of 2 d.
    scale = 2.0 if fields.get("multi_class") == "multinomial" else 1.0
    return Classifier(weight * scale, bias * scale)


def _numbers(fields: dict[str, Any], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An attribute that is an array of numbers."""
    match fields[name]:
        case _Array(dtype=_Dtype(kind=kind, order=order), shape=shape, content=content) if (
            kind in _DTYPES
            and order in ("<", ">", "|", "=")
            and all(type(n) is int and 0 < n <= _LARGEST for n in shape)
            and 1 <= len(shape) <= 2
        ):
            data = content.text.encode("latin1") if isinstance(content, _Encoded) else content
            dtype = np.dtype(order + kind)
            if type(data) is bytes and len(data) == math.prod(shape) * dtype.itemsize:
                values = np.frombuffer(data, dtype).reshape(shape).astype(np.float64)
                if np.isfinite(values).all():
                    return values
    raise ValueError(f"{name} must be an array of finite numbers")
