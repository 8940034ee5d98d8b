"""Where a checkpoint's files come from: a directory, a repository on the hub, or this package."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..files import is_file, reason, shown, warn

BUILT_IN = "tiny"
RANDOM = "random"
KNOWN_MODELS = (BUILT_IN, "suno/bark-small", "suno/bark", RANDOM)
_PATIENCE_S = 4
_PATH = re.compile(r"^(?:[/~]|\.\.?/)|\.(?:pt|th|bin|safetensors)$")  # none of the hub's names
_TIP = f"the model {BUILT_IN!r} ships with minibark and needs no download"


def fixed(place: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The absolute path of a place that is here; others, names and no name, as they are."""
    path = os.path.abspath(os.path.expanduser(place))
    is_name = isinstance(place, str) and place in (BUILT_IN, RANDOM, "")
    return path if os.path.exists(path) and not is_name else place


@dataclass
class Source:
    """A directory or a hub repository, asked for files by name.

    Attributes:
        name: path or repository; `BUILT_IN` is always the checkpoint in this package, `RANDOM` a
            model with random weights, and directories of such names are `./tiny`, `./random`.
        cache_dir: the hub's cache; None is its usual place.
        revision: branch, tag or commit on the hub.
        offline: never ask the hub, use what is cached.
        unreachable: why the hub did not answer; waiting for it once is enough.
        is_answering: whether it did.
        root: where a local source was when it was pinned, whatever the current folder is since.
    """

    name: str
    cache_dir: str | None
    revision: str | None
    offline: bool
    unreachable: str = ""
    is_answering: bool = False
    root: Path | None = None

    @classmethod
    def of(
        cls,
        place: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        offline: bool = False,
    ) -> Source:
        """A place as callers name it; a path object is a path, also where a string is a name."""
        name = os.fspath(place)
        if not isinstance(place, str) and name in (BUILT_IN, RANDOM):
            name = os.path.join(os.curdir, name)
        cache = None if cache_dir is None else os.path.expanduser(cache_dir)
        return cls(name, cache, revision, offline)

    @property
    def path(self) -> Path:
        """The name as a path, `~` expanded; the built-in model's is in this package."""
        if self.root is not None:
            return self.root
        own = Path(__file__).parents[1] / BUILT_IN
        return own if self.name == BUILT_IN else Path(os.path.expanduser(self.name))

    @property
    def is_random(self) -> bool:
        """Whether there is nothing to find: the weights are random."""
        return self.name == RANDOM

    @property
    def is_local(self) -> bool:
        """Whether it is a directory here."""
        return os.path.isdir(self.path)

    def elsewhere(self, place: str | os.PathLike[str]) -> Source:
        """Another place, asked in the same way."""
        other = Source.of(place, self.cache_dir, None, self.offline)
        other.unreachable, other.is_answering = self.unreachable, self.is_answering
        return other

    def pinned(self) -> Source:
        """This source; a repository is held to the commit that its revision means just now.

        Raises:
            FileNotFoundError: no such place, no network, or a package without its checkpoint.
        """
        if self.name == BUILT_IN and not os.path.isfile(self.path / "config.json"):
            raise FileNotFoundError(
                f"this minibark was built without the model {BUILT_IN!r}: {self.path} has no "
                "config.json. Install it from a complete checkout, or name another model"
            )
        if not self.name:
            raise FileNotFoundError("no model '': name a hub repository or a folder")
        is_here = self.is_random or self.is_local or os.path.isfile(self.path)
        if is_here and self.revision not in (None, "main"):
            warn(
                f"{shown(self.name)} is not on the hub, so revision {self.revision!r} means nothing"
            )
        if self.is_random:
            return self
        if is_here:
            return dataclasses.replace(self, root=self.path.absolute())
        if _PATH.search(self.name):
            raise FileNotFoundError(
                f"no model {self.name!r}: no file or folder at {shown(self.path)}"
            )
        return dataclasses.replace(self, revision=self.need("config.json").parent.name)

    def find(self, filename: str) -> Path | None:
        """The local path of one file, downloaded if need be; None if the source has no such file.

        Raises:
            FileNotFoundError: no such repository or directory, or no network.
            PermissionError: a directory that may not be searched.
        """
        if self.is_local:
            path = self.path / filename
            return path if is_file(path) else None
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

        cache, revision = self.cache_dir, self.revision
        is_commit = re.fullmatch("[0-9a-f]{40}", self.revision or "")
        cause: Exception | None = None
        try:
            # The client's `local_files_only` would not keep it from asking the hub other things.
            known = try_to_load_from_cache(self.name, filename, cache, revision)
            if known is not None and (is_commit or self.offline or not self._answers()):
                return Path(known) if isinstance(known, str) else None  # it is known to lack it
            if not self.offline and self._answers():
                return Path(
                    hf_hub_download(self.name, filename, cache_dir=cache, revision=revision)
                )
        except errors.LocalEntryNotFoundError as error:
            self.unreachable, cause = reason(error.__cause__ or error), error
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # among them those of the HTTP library that the client uses
            if isinstance(error, errors.GatedRepoError):
                text = f"access to {self.name!r} on the hub is restricted: ask for it on its page, "
                text += "then log in with 'hf auth login'"
            elif isinstance(error, errors.RevisionNotFoundError):
                text = f"{self.name!r} on the hub has no revision {self.revision!r}"
            elif isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
                text = f"no model {self.name!r}: neither a directory here nor a repository on the "
                text += f"hub. Known models: {', '.join(KNOWN_MODELS)}"
            else:
                text = f"{filename} of {self.name!r} could not be fetched ({reason(error)}); {_TIP}"
            raise FileNotFoundError(text) from error
        if isinstance(try_to_load_from_cache(self.name, "config.json", cache, revision), str):
            return None
        why = f"cannot be reached: {self.unreachable}" if self.unreachable else "was not asked"
        how = f"'minibark convert {self.name} DIR'; then DIR is the model"
        if filename != "config.json":
            how = f"'hf download {self.name} {filename}'"
        raise FileNotFoundError(
            f"{filename} of {self.name!r} is not in the local cache, and the hub "
            f"{why}; nor is there such a folder here. On a "
            f"machine with network: {how}; {_TIP}"
        ) from cause

    def _answers(self) -> bool:
        """Whether the hub answers, asked once; its client would try for 25 s to find out."""
        if not self.unreachable and not self.is_answering:
            from huggingface_hub import constants, get_session

            url = f"{constants.ENDPOINT}/api/models/{self.name}"
            try:
                status = get_session().head(url, timeout=_PATIENCE_S).status_code
                if status >= 500 or status == 429:
                    raise ConnectionError(f"{constants.ENDPOINT} answers with status {status}")
                self.is_answering = True
            except Exception as error:  # whatever the HTTP library raises
                self.unreachable = reason(error)
        return self.is_answering

    def need(self, filename: str) -> Path:
        """As `find`, for a file that must be there."""
        path = self.find(filename)
        if path is None:
            is_cache = not self.is_local and (self.offline or self.unreachable)
            raise FileNotFoundError(
                f"{self.name} has no {filename}{' in the local cache' if is_cache else ''}; the "
                "checkpoint is incomplete"
            )
        return path
