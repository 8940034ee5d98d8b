"""What a clip that is done would be otherwise now."""

from __future__ import annotations

from typing import Any

from ..files import shown
from ..options import Options, knobs
from .plan import LongOptions

_DEFAULTS = {
    name: getattr(kind, name) for kind in (Options, LongOptions) for name, _ in knobs(kind)
}
_KEYS = {"first_seed": "seed"}  # what a manifest has for a record's


def difference(record: dict[str, Any], expected: dict[str, Any]) -> str:
    """In what a record is not what is expected, by the names of keys; "" if in nothing.

    What is not among the expected is not compared.
    """
    found = []
    # Where the voice cannot be read its name has to do.
    voice = "voice_checksum" if "voice_checksum" in expected else "voice"
    for key in ("text", voice, "first_seed", "file", "checksum", "precision"):
        if key in expected and record.get(key) != expected[key]:
            # What people call it, where that tells the two apart.
            name = {"voice_checksum": "voice", "checksum": "model"}.get(key, key)
            name = key if record.get(name) == expected[name] else name
            found.append(_change(name, record.get(name), expected[name]))
    options = record.get("options")
    before = {**_DEFAULTS, "one_piece": False, **(options if isinstance(options, dict) else {})}
    for key, now in expected.get("options", {}).items():
        if before[key] != now:
            found.append(_change(key, before[key], now))
    return ", ".join(found)


def _change(name: str, before: object, now: object) -> str:
    was, is_now = (
        repr(shown(value, 40)) if isinstance(value, str) else shown(repr(value), 40)
        for value in (before, now)
    )
    return f"{_KEYS.get(name, name)} was {was}, is {is_now}"
