"""`torch.save` files: their pickle programs, and tensors that are views of the mapped file.

zip     NAME/data.pkl, the program; NAME/data/KEY, a storage each; nothing compressed
legacy  five programs: a magic number, a version, facts of the system, the content and the keys
        of all storages; then each storage, after its length
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import shown
from .pickles import MAX_PROGRAM_BYTES, Machine, Storage, View

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

Place = tuple[int, int]
"""Where a piece of a file begins, and how many bytes it has."""


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a `torch.save` file, and its `model_args` (as JSON) if it has any.

    Tensors are contiguous and do not overlap; those that are one in the file are one object.

    Raises:
        ValueError: truncated, damaged, or holding anything else than tensors and plain values.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        content, places = _read_zip(data) if data[:4] == b"PK\3\4" else _read_legacy(data)
    except (struct.error, OverflowError, StopIteration) as error:
        raise ValueError("it is cut short, or a length in it is wrong") from error
    metadata = {}
    if isinstance(content, dict) and "model" in content:
        if "model_args" in content:
            metadata["model_args"] = json.dumps(_plain(content["model_args"]))
        content = content["model"]
    if not isinstance(content, dict) or {type(view) for view in content.values()} != {View}:
        raise ValueError("it is not a dictionary of tensors")
    return _tensors(content, data, places), metadata


def _read_zip(data: mmap.mmap) -> tuple[Any, dict[str, Place]]:
    """The content of a zip file, and the places of its storages by key."""
    members = _members(data)
    if "data.pkl" not in members:
        raise ValueError("it has no data.pkl")
    if "byteorder" in members:
        start, size = members["byteorder"]
        if data[start : start + min(size, 10)] != b"little":
            raise ValueError("its numbers are not little-endian")
    start, size = members["data.pkl"]
    machine = Machine(data[start : start + min(size, MAX_PROGRAM_BYTES)])
    content = machine.run()
    return content, {key: members.get(f"data/{key}", (0, -1)) for key in machine.storages}


def _members(data: mmap.mmap) -> dict[str, Place]:
    """The places of an archive's files, by their names below its one folder.

    Source: PKWARE's APPNOTE.TXT 6.3, sections 4.3 (layout) and 4.5.3 (sizes of 64 bits).
    """
    end = len(data) - 22
    if data[max(end, 0) : end + 4] != b"PK\5\6":
        raise ValueError("it is a zip archive without its end")
    n_entries, n_bytes, start = struct.unpack_from("<HII", data, end + 10)
    if 0xFFFF == n_entries or 0xFFFFFFFF in (n_bytes, start):
        (end,) = struct.unpack_from("<Q", data, end - 12)
        n_entries, n_bytes, start = struct.unpack_from("<QQQ", data, end + 32)
    if start + n_bytes > end or n_bytes > MAX_PROGRAM_BYTES:
        raise ValueError("it is a zip archive whose directory is too large")
    directory, at, root = data[start : start + n_bytes], 0, None
    members: dict[str, Place] = {}
    for _ in range(n_entries):
        fields = struct.unpack_from("<4s6H3I5H2I", directory, at)
        flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
        name_end = at + 46 + fields[10]
        name, extra = directory[at + 46 : name_end], directory[name_end : name_end + fields[11]]
        at = name_end + fields[11] + fields[12]
        wide = iter(_wide_numbers(extra))
        size, packed, offset = (
            next(wide) if number == 0xFFFFFFFF else number for number in (size, packed, fields[16])
        )
        if method or flags & 1 or packed != size:
            raise ValueError("it is compressed, as no checkpoint is")
        local = struct.unpack_from("<4s5H3I2H", data, offset)
        place = (offset + 30 + local[9] + local[10], size)
        same = local[0] == b"PK\3\4" and local[3] == method and local[9] == len(name)
        if not same or data[offset + 30 : offset + 30 + len(name)] != name or sum(place) > start:
            raise ValueError("it is a zip archive whose directory is wrong")
        folder, _, inner = name.decode("utf-8").partition("/")
        root = folder if root is None else root
        if folder == root and members.setdefault(inner, place) != place:
            raise ValueError(f"it is a zip archive with two files {shown(inner)}")
    return members


def _wide_numbers(extra: bytes) -> tuple[int, ...]:
    """The numbers of 64 bits in the extra fields of an archive's entry."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            return struct.unpack_from(f"<{min(size, 24) // 8}Q", extra, at + 4)
        at += 4 + size
    return ()


def _read_legacy(data: mmap.mmap) -> tuple[Any, dict[str, Place]]:
    """The content of a file of torch before 1.6, and the places of its storages by key."""
    at, values = 0, []
    storages: dict[str, Storage] = {}
    for limit in (1 << 10, 1 << 10, 1 << 10, MAX_PROGRAM_BYTES, MAX_PROGRAM_BYTES):
        machine = Machine(data[at : at + limit])
        values.append(machine.run())
        at += machine.at
        storages |= machine.storages
        if values[0] != _LEGACY_MAGIC:
            raise ValueError("it does not begin as torch's files do")
    _, version, _, content, keys = values
    if version != _LEGACY_VERSION or type(keys) is not list:
        raise ValueError("it is not of torch's format 1001")
    places: dict[str, Place] = {}
    for key in keys:
        if type(key) is not str or key not in storages or key in places:
            raise ValueError("its list of storages is wrong")
        (total,) = struct.unpack_from("<q", data, at)
        places[key] = (at + 8, max(total, 0) * storages[key].dtype.itemsize)
        at = sum(places[key])
    return content, places


def _plain(model_args: object) -> dict[str, Any]:
    """Suno's `model_args`, if it is a dictionary of plain values."""
    if not isinstance(model_args, dict):
        raise ValueError("model_args is not a dictionary")
    for name, value in model_args.items():
        if type(name) is not str or type(value) not in (bool, int, float, str, type(None)):
            kind = type(value).__name__
            raise ValueError(f"model_args {shown(name)} is no plain value, but {kind}")
    return model_args


def _tensors(
    views: Mapping[Any, View], data: mmap.mmap, places: Mapping[str, Place]
) -> dict[str, Tensor]:
    """Tensors by name. Neither they nor the storages copied for them exceed the file together."""
    whole = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
    storages: dict[str, torch.UntypedStorage] = {}
    made: dict[View, Tensor] = {}
    room = room_for_copies = len(data)
    state = {}
    for name, view in views.items():
        if type(name) is not str or shown(name) != name:
            raise ValueError(f"a tensor is named {shown(name)}, as no checkpoint's is")
        view = _checked(view, name)
        if view not in made:
            key, dtype, total, offset, _ = view.storage
            room -= math.prod(view.size) * dtype.itemsize
            if key not in storages:
                start, size = places.get(key, (0, -1))
                if size != total * dtype.itemsize or start + size > len(data):
                    raise ValueError(f"the numbers of {name} are not all there")
                storages[key] = whole[start : start + size]
                if start % dtype.itemsize:  # legacy files do not align
                    room_for_copies -= size
                    if room_for_copies >= 0:
                        storages[key] = storages[key].clone()  # type: ignore[no-untyped-call]
            if min(room, room_for_copies) < 0:
                raise ValueError("its tensors repeat values: together they exceed the file")
            tensor = torch.empty(view.size if 0 in view.size else 0, dtype=dtype)
            if 0 not in view.size:
                tensor.set_(storages[key], offset + view.offset, view.size, view.stride)
            made[view] = tensor.contiguous()
        state[name] = made[view]
    return state


def _checked(view: View, name: str) -> View:
    """The view, if its storage has all its numbers; strides that mean nothing are 1."""
    storage, offset, size, stride = view
    numel, shape = math.prod(size), f"{name} of shape {shown(size)}"
    if min((offset, *size, *stride)) < 0 or math.prod(max(n, 1) for n in size) >= 1 << 63:
        raise ValueError(f"{shape} is no tensor")
    if numel > storage.size:
        raise ValueError(f"{shape} repeats few values")
    stride = tuple(step if n > 1 else 1 for n, step in zip(size, stride, strict=True))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel and last >= storage.size:
        raise ValueError(f"{shape} reaches beyond its numbers")
    return View(storage, offset if numel else 0, size, stride)
