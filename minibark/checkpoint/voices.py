"""The voices that come with a checkpoint, by name."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import inside, read_json, shown
from ..voice import PARTS, Voice, VoiceError

_MAX_COMPARED = 2000  # names of an index, to find those near to one

VoiceLike = Voice | str | os.PathLike[str] | Mapping[str, Any] | None
"""A voice by name or `.npz` path, as a `Voice`, as Suno's dictionary, or None for none."""


LANGUAGES = {
    "en": "English",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "zh": "Chinese",
}
"""What Suno's checkpoints speak, by the codes in the names of their voices."""

_RECORDINGS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".webm", ".mp4")


def language(name: str) -> str:
    """The language of a voice that is named as Suno's are, such as v2/en_speaker_6; else ""."""
    found = re.search(r"(?:^|/)([a-z]{2})_speaker_[0-9]+$", name)
    return LANGUAGES.get(found[1], "") if found else ""


class Voices:
    """The voices that come with a checkpoint, by name; files are fetched when a voice is used."""

    def __init__(
        self,
        files: Mapping[str, Mapping[str, str]],
        fetch: Callable[[str], Path],
        find: Callable[[str], Path] | None = None,
    ) -> None:
        """Voices by name.

        Args:
            files: name -> part -> path; a part of "" is a whole `.npz`.
            fetch: gives the local file for a path, downloaded if need be.
            find: gives the local file for a path if it is here already; None is `fetch`.
        """
        self._files = dict(files)
        self._fetch = fetch
        self._find = find or fetch

    @classmethod
    def from_directory(cls, root: str | os.PathLike[str]) -> Voices:
        """All voices under a directory: `.npz` files, and `.npy` triples as the hub has them.

        They are named by their path without what all such files end in.
        """
        base = Path(os.path.expanduser(root)).absolute()
        files = {}
        for path in sorted(base.rglob("*_semantic_prompt.npy")):
            stem = path.relative_to(base).as_posix().removesuffix("_semantic_prompt.npy")
            parts = {part: f"{stem}_{part}_prompt.npy" for part in PARTS}
            if all((base / file).is_file() for file in parts.values()):
                files[stem] = parts
        for path in sorted(base.rglob("*.[nN][pP][zZ]")):
            name = path.relative_to(base)
            files[name.with_suffix("").as_posix()] = {"": name.as_posix()}
        return cls(files, base.joinpath)

    @classmethod
    def from_index(
        cls,
        index: Path,
        fetch: Callable[[str], Path],
        find: Callable[[str], Path] | None = None,
    ) -> Voices:
        """The voices of a Hugging Face `speaker_embeddings_path.json`.

        Args:
            index: the file: name -> {"semantic_prompt": path, "coarse_prompt": path, ...}.
            fetch: gives the local file for a path, downloaded if need be.
            find: the same, if it is here already; None is `fetch`.

        Raises:
            CheckpointError: not JSON, or a path that leaves the checkpoint's folder.
            VoiceError: an entry without the three paths.
        """
        entries = read_json(index)
        if not isinstance(entries, dict):
            raise VoiceError(f"{index} must hold a JSON object of voices")
        files = {}
        for name, entry in entries.items():
            if name == "repo_or_path":
                continue
            if not isinstance(entry, dict) or not {f"{part}_prompt" for part in PARTS} <= set(
                entry
            ):
                raise VoiceError(f"{index}: voice {shown(name)} lacks one of its three arrays")
            # Some indices were written on Windows.
            paths = {part: entry[f"{part}_prompt"] for part in PARTS}
            files[name] = {
                part: inside(path.replace("\\", "/") if isinstance(path, str) else path, str(index))
                for part, path in paths.items()
            }
        return cls(files, fetch, find)

    @staticmethod
    def from_stem(stem: str) -> Voice | None:
        """The voice of three `.npy` files `STEM_semantic_prompt.npy` ..., if they are there."""
        base = os.path.expanduser(stem)
        paths = {part: Path(f"{base}_{part}_prompt.npy") for part in PARTS}
        return Voice.of_files(paths) if all(map(os.path.isfile, paths.values())) else None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def is_here(self, name: str) -> bool:
        """Whether the files of a voice need no download."""
        try:
            return all(self._find(path).is_file() for path in self._files[name].values())
        except FileNotFoundError:
            return False

    def files(self, voice: str | None) -> list[Path]:
        """The files here of the voice of a name; none where there is no such voice."""
        found = []
        for path in self._files.get(voice or "", {}).values():
            with contextlib.suppress(FileNotFoundError):
                found.append(self._find(path))
        return found

    def load(self, name: str) -> Voice:
        """The voice of that name.

        Raises:
            VoiceError: no such name (near ones are suggested), or its files are not a voice.
            FileNotFoundError: the index names a file that is not there.
        """
        if name not in self._files:
            some = itertools.islice(self._files, _MAX_COMPARED)
            near = difflib.get_close_matches(name, some, n=3, cutoff=0.5)
            hint = f"; near names: {', '.join(map(shown, near))}" if near else ""
            have = (
                f"has {len(self)} voices ('minibark voices' lists them)"
                if self._files
                else ("comes with no voices")
            )
            raise VoiceError(
                f"no voice {name!r}: this checkpoint {have}{hint}. A path to an .npz file works too"
            )
        return Voice.of_files({part: self._fetch(path) for part, path in self._files[name].items()})

    def resolve(self, voice: VoiceLike) -> Voice | None:
        """The voice that a name, path, dictionary or `Voice` stands for; None stays None.

        Raises:
            VoiceError: an unknown name, or something else.
            FileNotFoundError: no such file.
        """
        if voice is None or isinstance(voice, Voice):
            return voice
        if isinstance(voice, Mapping):
            return Voice.from_arrays(voice)
        if isinstance(voice, (str, os.PathLike)):
            name = os.fspath(voice)
            if name.lower().endswith(".npz"):
                return Voice.load(name)
            if name.lower().endswith(_RECORDINGS):
                raise VoiceError(
                    f"{name} is a recording; a voice is a file of tokens (.npz) that Bark made: "
                    "'minibark say ... --save-voice FILE.npz' keeps one. It clones no voices"
                )
            if name not in self and (triple := Voices.from_stem(name)) is not None:
                return triple
            return self.load(name)
        raise VoiceError(
            f"a voice is a name, an .npz path, a Voice or a dictionary, not {type(voice)}"
        )
