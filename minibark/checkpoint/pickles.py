"""Pickle programs as torch writes them: no class is looked up and no function is called.

A pickle is a program for a stack machine. This one knows the opcodes of protocol 2 that torch
writes, and works on values that can do nothing. No opcode makes more than one small object or
copies what is there, so the number of opcodes bounds what a program takes.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import torch

from ..files import shown

# The large Bark of transformers has 1,192 tensors in 153,245 bytes with 37,209 opcodes.
MAX_PROGRAM_BYTES = 1 << 22
_MAX_OPCODES = 1 << 19
_MAX_NDIM = 8

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_ENCODE = "_codecs.encode"
_NUMPY = {
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
}
_NAMES = {*_STORAGES, _DICT, _TENSOR, *_PARAMETERS, _ENCODE, *_NUMPY}


class Name(str):
    """The name of a class or function that a program asked for."""


class _Inert:
    """What a NumPy value becomes, such as `best_val_loss` in Suno's files; nothing needs it."""


class Storage(NamedTuple):
    """Numbers in the file: `size` of them from `offset` on, of the `total` under `key`."""

    key: str
    dtype: torch.dtype
    total: int
    offset: int
    size: int


class View(NamedTuple):
    """A tensor to be made of a storage; sizes, strides and offset in numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_EMPTY: dict[bytes, type[Any]] = {b"}": dict, b"]": list, b")": tuple}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
_PUT = {b"q": "<B", b"r": "<I"}
_GET = {b"h": "<B", b"j": "<I"}


class Machine:
    """One program, run over None, bool, int, float, str, tuple, list, dict and the types above.

    Attributes:
        names: of classes and functions, those that a program may ask for.
        protocols: of pickles, those that are read.
        keys: types that a dictionary's keys may have besides text and small numbers.
        writer: what is known to write such programs.
        holds: what is in them.
        at: the next byte of the code; after `run`, where the program ended.
        storages: those that the program named, by key.
    """

    names: ClassVar[Collection[str]] = _NAMES
    protocols: ClassVar[Collection[int]] = (2,)
    keys: ClassVar[Collection[type]] = ()
    writer: ClassVar[str] = "torch"
    holds: ClassVar[str] = "plain tensors and values"

    def __init__(self, code: bytes) -> None:
        self.code, self.at = code, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """The value that the program ends with.

        Raises:
            ValueError: the program is cut short or damaged, or asks for what is not allowed.
        """
        try:
            for _ in range(_MAX_OPCODES):
                opcode = self.take(1)
                if opcode == b".":
                    if len(self.stack) != 1:
                        raise TypeError
                    return self.stack[0]
                if opcode in _CONSTANTS:
                    self.stack.append(_CONSTANTS[opcode])
                elif opcode in _EMPTY:
                    self.stack.append(_EMPTY[opcode]())
                elif opcode in _NUMBERS:
                    self.stack.append(self.number(_NUMBERS[opcode]))
                elif opcode in _GET:
                    self.stack.append(self.memo[self.number(_GET[opcode])])
                elif opcode in _PUT:
                    self.memo[self.number(_PUT[opcode])] = self.stack[-1]
                else:
                    self.step(opcode)
            raise ValueError(f"its pickle program has over {_MAX_OPCODES:,} opcodes")
        except UnicodeError as error:
            raise ValueError("a text in its pickle program is not UTF-8") from error
        except (LookupError, TypeError) as error:
            raise ValueError(f"its pickle program is wrong before byte {self.at}") from error

    def called(self, name: object, args: object) -> Any:
        """What stands for the value that a function of this name would return."""
        return _called(name, args)

    def built(self, target: Any, state: Any) -> None:
        """Let a value have the attributes that a program gives it; `_metadata` is dropped."""
        if type(target) not in (dict, _Inert):
            raise TypeError

    def named(self, module: str, name: str) -> Name:
        """The name of a class or function, if a program may ask for it."""
        found = Name(f"{module}.{name}")
        if found not in self.names:
            raise ValueError(f"it holds more than {self.holds}, which is refused: {shown(found)}")
        return found

    def step(self, opcode: bytes) -> None:
        """Do what one of the rarer opcodes says."""
        stack = self.stack
        match opcode:
            case b"X":
                stack.append(self.take(self.number("<I")).decode("utf-8"))
            case b"U":
                stack.append(self.take(self.number("<B")).decode("utf-8"))
            case b"\x8a":
                number = self.take(self.number("<B"))
                stack.append(int.from_bytes(number, "little", signed=True))
            case b"(":
                self.marks.append(len(stack))
            case b"t":
                stack.append(tuple(self.pop_from(self.marks.pop())))
            case b"\x85" | b"\x86" | b"\x87":
                stack.append(tuple(self.pop_from(len(stack) - (opcode[0] - 0x84))))
            case b"a" | b"e":
                items = self.pop_from(len(stack) - 1 if opcode == b"a" else self.marks.pop())
                self.target(list).extend(items)
            case b"s" | b"u":
                items = self.pop_from(len(stack) - 2 if opcode == b"s" else self.marks.pop())
                if len(items) % 2:
                    raise TypeError
                for key in items[::2]:
                    is_small = type(key) is int and abs(key) < 1 << 32  # larger hashes can collide
                    if type(key) is not str and not is_small and type(key) not in self.keys:
                        kind = type(key).__name__
                        raise ValueError(f"a dictionary has a key of type {kind}, or too large")
                self.target(dict).update(zip(items[::2], items[1::2], strict=True))
            case b"c":
                stack.append(self.named(self.line(), self.line()))
            case b"R" | b"\x81":
                name, args = self.pop_from(len(stack) - 2)
                stack.append(self.called(name, args))
            case b"b":
                attributes = stack.pop()
                self.built(stack[-1], attributes)
            case b"Q":
                storage = _storage(stack.pop())
                known = self.storages.setdefault(storage.key, storage)
                if (known.dtype, known.total) != (storage.dtype, storage.total):
                    raise ValueError(f"storage {shown(storage.key)} has two types or sizes")
                stack.append(storage)
            case b"\x80":
                if (protocol := self.number("<B")) not in self.protocols:
                    others = ", ".join(map(str, self.protocols))
                    raise ValueError(
                        f"it is pickled by protocol {protocol}; {self.writer} writes {others}"
                    )
            case _:
                raise ValueError(
                    f"opcode {opcode!r}, which {self.writer} does not write, is refused"
                )

    def take(self, n_bytes: int) -> bytes:
        """The next bytes of the code."""
        taken = self.code[self.at : self.at + n_bytes]
        if len(taken) < n_bytes:
            raise ValueError("its pickle program is cut short, or is too long")
        self.at += n_bytes
        return taken

    def number(self, form: str) -> Any:
        """The next number of the code, in a form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, encoding: str = "ascii") -> str:
        """The next line of the code, without its end."""
        end = self.code.find(b"\n", self.at)
        return self.take(end + 1 - self.at if end >= 0 else len(self.code))[:-1].decode(encoding)

    def pop_from(self, start: int) -> list[Any]:
        """What lies on the stack from a place on, taken off."""
        if not 0 <= start <= len(self.stack):
            raise IndexError
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def target(self, kind: type[Any]) -> Any:
        """The value on top of the stack, which must be of a kind."""
        if type(self.stack[-1]) is not kind:
            raise TypeError
        return self.stack[-1]


def _called(name: object, args: object) -> Any:
    """What stands for the value that a function of this name would return."""
    if type(name) is Name and type(args) is tuple:
        match (str(name), args):
            case (n, ()) if n == _DICT:
                return {}
            case (n, (View() as view, *_)) if n in _PARAMETERS:
                return view
            case (n, (str(), "latin1")) if n == _ENCODE:
                return _Inert()
            case (n, (Storage() as storage, offset, tuple() as size, tuple() as stride, *_)) if (
                n == _TENSOR and len(size) == len(stride) <= _MAX_NDIM
            ):
                if all(type(n) is int for n in (offset, *size, *stride)):
                    return View(storage, offset, size, stride)
        if name in _NUMPY:
            return _Inert()
    raise ValueError("it calls a function otherwise than torch does, which is refused")


def _storage(identity: object) -> Storage:
    """The storage of a persistent id: "storage", type, key, device, size and, in old files, a view.

    The device does not matter here: numbers of a GPU are stored as any others.
    """
    match identity if type(identity) is tuple and len(identity) < 7 else None:
        case ("storage", Name() as kind, str(key), str(), int(total), *view) if (
            kind in _STORAGES and total >= 0
        ):
            match view:
                case [] | [None]:
                    return Storage(key, _STORAGES[kind], total, 0, total)
                case [(str(), int(offset), int(size))] if 0 <= offset <= offset + size <= total:
                    return Storage(key, _STORAGES[kind], total, offset, size)
    raise ValueError("it has a persistent id that is no storage, which is refused")
