"""The hub: a server on this machine that answers huggingface_hub as the real one does.

The client reads its environment when it is imported, so each test runs in a Python of its own.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import checkpoints as made
import numpy as np
import pytest
import torch

from minibark.checkpoint.layouts import CODEC_REPO
from minibark.checkpoint.vocabulary import VOCAB_REPO

REPO = "suno/bark-small"
TOKEN = "hf_a_secret_of_this_test"
FILES = {"config.json", "generation_config.json", "pytorch_model.bin", "vocab.txt"}
INDEX = "speaker_embeddings_path.json"


@dataclass
class Hub:
    """What the server has, and what it was asked for.

    Attributes:
        commits: repository -> commit -> folder.
        revisions: repository -> branch or tag -> commit.
        problems: repository -> (status, X-Error-Code); a status of 0 cuts the body short.
        log: (method, repository, revision, file) of each request for a file.
        others: other requests, which the client makes on its own.
        tokens: what came as Authorization with requests for files.
        is_down: whether it answers nothing but 503.
        on_request: called with each log entry after it is answered.
    """

    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: dict[str, tuple[int, str]] = field(default_factory=dict)
    log: list[tuple[str, str, str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    on_request: Callable[[tuple[str, str, str, str]], None] = lambda entry: None
    url: str = ""
    is_down: bool = False

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Put a folder on the hub; returns its commit."""
        commit = hashlib.sha1(f"{repo} {revision} {folder}".encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = folder
        self.revisions.setdefault(repo, {})[revision] = commit
        return commit

    def got(self, method: str, repo: str = REPO) -> set[str]:
        return {file for verb, name, _, file in self.log if (verb, name) == (method, repo)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub: Hub = self.server.hub
        if hub.is_down or "/resolve/" not in self.path:
            hub.others.append(self.path)
            self.send_error(503 if hub.is_down else 404)
            return
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        entry = (self.command, repo, revision, file)
        hub.log.append(entry)
        hub.tokens.append(self.headers.get("Authorization"))
        status, code = hub.problems.get(repo, (200, ""))
        commit = hub.revisions.get(repo, {}).get(revision, revision)
        folder = hub.commits.get(repo, {}).get(commit)
        if status in (0, 200):
            if repo not in hub.commits:
                status, code = 401, "RepoNotFound"
            elif folder is None:
                status, code = 404, "RevisionNotFound"
            elif not (folder / file).is_file():
                status, code = 404, "EntryNotFound"
        body = (folder / file).read_bytes() if not code and folder else b""
        self.send_response(status or 200)
        self.send_header("Content-Length", str(len(body)))
        if folder:
            self.send_header("X-Repo-Commit", commit)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"{code}, a message")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if status else body[: len(body) // 2])
        self.close_connection = not status
        hub.on_request(entry)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # a client that has gone


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints to put on the hub; tests must not change them."""
    root = tmp_path_factory.mktemp("hub")
    small = made.save_hf_bin(made.tiny_bark(), root / "small")
    voices = [made.random_voice(made.TINY.generation, seed=seed) for seed in (0, 1)]
    made.save_hf_voices(small, dict(zip(("a", "v2/b"), voices, strict=True)))
    other = made.build_transformers(made.TINY, seed=5)
    made.save_hf(other, root / "other")
    (root / "codec").mkdir()
    made.narrow_encodec().save_pretrained(root / "codec")
    (root / "empty").mkdir()
    (root / "no-weights").mkdir()
    for name in ("config.json", "generation_config.json"):
        (root / "no-weights" / name).write_bytes((small / name).read_bytes())
    return root


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def open_hub(server, folders) -> Hub:
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    server.hub.add(REPO, folders / "small")
    return server.hub


@pytest.fixture
def hub(server, folders, filled):
    """The hub with one repository; others have to be added."""
    return open_hub(server, folders)


DRIVER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
time.sleep = lambda seconds: None  # the hub's client waits between its attempts
import torch
torch.set_num_threads(1)
from minibark import Bark
codes = torch.arange(36).reshape(4, 9) % 16
for options in json.loads(sys.argv[1]):
    voice = options.pop("voice", None)
    try:
        bark = Bark.from_pretrained(**options, device="cpu", precision="float32")
        if voice:
            bark.load_voice(voice)
        answer = {"voices": list(bark.voices)}
        if bark.config.codec.n_codebooks == 4:
            answer["audio"] = bark.decode(codes).tolist()
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(answer))
"""
CODES = torch.arange(36).reshape(1, 4, 9) % 16


def voice_files(name: str) -> set[str]:
    return {
        f"speaker_embeddings/{name}_{part}_prompt.npy" for part in ("semantic", "coarse", "fine")
    }


def load_from(hub: Hub, root: Path, *models: dict, **environment: str) -> list[dict]:
    """Open models in a new Python whose caches are under `root`.

    Args:
        hub: where from.
        root: a folder.
        *models: for each the options of `from_pretrained` that matter, and a voice to load.
        **environment: in place of the usual.

    Returns:
        For each model its voices and the audio of `CODES`, or its error.
    """
    usual = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(root / "home"),
        "XDG_CACHE_HOME": str(root / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    jobs = json.dumps([{"name_or_dir": REPO} | model for model in models])
    done = made.run_python(DRIVER, jobs, **(usual | environment))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(models)
    return answers


@pytest.fixture
def load(hub, tmp_path):
    """Opens models in a new Python, one or several; the log is of the last time."""

    def run(*models, **environment):
        hub.log.clear()
        hub.tokens.clear()
        hub.others.clear()
        answers = load_from(hub, tmp_path, *(models or ({},)), **environment)
        return answers if len(models) > 1 else answers[0]

    return run


@pytest.fixture(scope="module")
def filled(server, folders, tmp_path_factory):
    """A cache that has the model and one of its voices, and the hub that saw it filled."""
    root = tmp_path_factory.mktemp("filled")
    hub = open_hub(server, folders)
    (answer,) = load_from(hub, root, {"voice": "a"}, HF_TOKEN=TOKEN)
    return root, hub, answer


@pytest.fixture
def cached(filled, tmp_path):
    """A copy of that cache, which `load` uses."""
    shutil.copytree(filled[0] / "home", tmp_path / "home", symlinks=True)
    return tmp_path / "home" / "hub" / "models--suno--bark-small"


@pytest.fixture(scope="module")
def audio():
    """What the released codec makes of `CODES`."""
    return made.decode(made.tiny_bark().codec_model, CODES)[0].tolist()


def assert_loaded(answer, audio):
    assert "error" not in answer, answer
    np.testing.assert_allclose(answer["audio"], audio, atol=1e-4, rtol=0)


def assert_refused(answer, *texts):
    """A FileNotFoundError whose text is one plain line that has these words."""
    assert answer.get("error") == "FileNotFoundError", answer
    for text in texts:
        assert text in answer["text"]
    assert "\n" not in answer["text"]
    assert len(answer["text"]) < 500


# ---- what is fetched ----


def test_only_what_is_needed_is_fetched(filled, audio):
    _, hub, answer = filled
    assert_loaded(answer, audio)
    assert answer["voices"] == ["a", "v2/b"]
    fetched = [entry[3] for entry in hub.log if entry[0] == "GET"]
    assert sorted(fetched) == sorted([*FILES, INDEX, *voice_files("a")])
    asked_only = hub.got("HEAD") - set(fetched)
    assert asked_only == {"model.safetensors", "model.safetensors.index.json"}
    assert {entry[1] for entry in hub.log} == {REPO}
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}


def test_what_was_fetched_is_not_fetched_again(hub, load, cached, audio):
    for answer in load({"voice": "a"}, {"voice": "v2/b"}):
        assert_loaded(answer, audio)
    assert hub.got("GET") == voice_files("v2/b")
    assert hub.got("HEAD") == voice_files("v2/b") | {"config.json"}
    assert set(hub.tokens) == {None}


def test_all_files_are_of_one_commit(hub, load, folders, audio):
    """The repository changes while it is read."""
    first = hub.revisions[REPO]["main"]
    second = hub.add(REPO, folders / "other", "next")

    def move(entry):
        if entry[0] == "GET":
            hub.revisions[REPO]["main"] = second

    hub.on_request = move
    assert_loaded(load(), audio)
    assert {entry[2] for entry in hub.log if entry[3] != "config.json"} == {first}


def test_a_revision_is_passed_on(hub, load, folders, audio):
    commit = hub.add(REPO, folders / "other", "v1")
    by_tag, by_commit, main = load({"revision": "v1"}, {"revision": commit}, {})
    assert "error" not in by_tag
    assert by_tag == by_commit
    assert by_tag["audio"] != main["audio"]
    assert_loaded(main, audio)
    assert {entry[2] for entry in hub.log if entry[1] == REPO} >= {"v1", commit, "main"}
    assert ("HEAD", REPO, "v1", "config.json") in hub.log


def test_cache_dir_takes_everything(hub, load, audio, tmp_path):
    assert_loaded(load({"cache_dir": str(tmp_path / "mine")}), audio)
    assert not (tmp_path / "home" / "hub").exists()
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "mine").glob("models--suno--bark-small/snapshots/*/config.json"))
    assert list((tmp_path / "mine" / "minibark").glob("*.safetensors"))


def test_a_repository_in_our_layout(hub, load, folders, audio, tmp_path):
    from minibark import convert

    convert(folders / "small", tmp_path / "ours", offline=True)
    hub.add("me/ours", tmp_path / "ours")
    assert_loaded(load({"name_or_dir": "me/ours"}), audio)
    assert hub.got("GET", "me/ours") == {"config.json", "model.safetensors", "vocab.txt"}


def test_a_stage_from_another_repository_fetches_no_more_than_it(hub, load, folders, audio):
    hub.add("suno/bark", folders / "other")
    answer, codec = load({"stages": {"coarse": "suno/bark"}}, {"stages": {"codec": "suno/bark"}})
    assert_loaded(answer, audio)
    assert "error" not in codec
    assert codec["audio"] != answer["audio"]
    files = {"config.json", "generation_config.json", "model.safetensors"}
    assert hub.got("GET", "suno/bark") == files


def test_sunos_layout_fetches_the_codec_and_the_vocabulary(hub, load, folders, tmp_path):
    hub.add(CODEC_REPO, folders / "codec")
    hub.add(VOCAB_REPO, folders / "small")
    suno = made.save_suno(tmp_path / "suno")
    (suno / "vocab.txt").unlink()
    (suno / "encodec_24khz").rename(tmp_path / "away")
    answer = load({"name_or_dir": str(suno), "revision": "of another"})
    assert "error" not in answer, answer
    assert hub.got("GET", CODEC_REPO) == {"config.json", "model.safetensors"}
    assert hub.got("GET", VOCAB_REPO) == {"vocab.txt"}
    assert {entry[1] for entry in hub.log} == {CODEC_REPO, VOCAB_REPO}


# ---- without the network ----

NOWHERE = "http://127.0.0.1:9"  # refuses connections


def test_the_vocabulary_is_found_in_the_cache_under_its_old_name(hub, load, folders, tmp_path):
    suno = made.save_suno(tmp_path / "suno")
    (suno / "vocab.txt").unlink()
    none = load({"name_or_dir": str(suno), "offline": True})
    assert_refused(none, "has no vocab.txt", f"'hf download {VOCAB_REPO} vocab.txt'")
    assert "convert" not in none["text"]  # it is no Bark
    for old in ("bert-base-multilingual-cased",):
        commit = "1" * 40
        repo = tmp_path / "home" / "hub" / f"models--{old.replace('/', '--')}"
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
        shutil.copy(folders / "small" / "vocab.txt", repo / "snapshots" / commit)
        for options, environment in (({"offline": True}, {}), ({}, {"HF_ENDPOINT": NOWHERE})):
            answer = load({"name_or_dir": str(suno)} | options, **environment)
            assert "error" not in answer, answer
        shutil.rmtree(repo)


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [(NOWHERE, "Connection refused")],
)
def test_a_hub_that_is_not_there_is_one_line_with_its_cause(endpoint, cause, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minibark", "say", "Hi.", "-o", tmp_path / "a.wav"],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("minibark: config.json of 'suno/bark-small' is not in the local cache")
    assert cause in line and "minibark convert suno/bark-small DIR" in line


def test_a_hub_that_is_down_is_asked_once(hub, load):
    hub.is_down = True
    assert_refused(load(), "cannot be reached", "answers with status 503")
    assert hub.others == ["/api/models/suno/bark-small"] and hub.log == []


@pytest.mark.parametrize(
    ("options", "environment"),
    [({"offline": True}, {}), ({}, {"HF_HUB_OFFLINE": "1"}), ({}, {"HF_ENDPOINT": NOWHERE})],
    ids=["offline", "HF_HUB_OFFLINE", "no network"],
)
def test_what_is_cached_needs_no_network(options, environment, hub, load, cached, audio):
    model, other, voice = load(
        options | {"voice": "a"},
        options | {"name_or_dir": "suno/bark"},
        options | {"voice": "v2/b"},
        **environment,
    )
    assert_loaded(model, audio)
    texts = ("'suno/bark' is not in the local cache", "minibark convert suno/bark", "'tiny' ships")
    assert_refused(other, *texts)
    assert_refused(voice, "v2/b_semantic_prompt.npy")
    assert (hub.log, hub.others) == ([], [])


def test_a_cache_without_notes_of_what_there_is_not_needs_no_network(load, cached, audio):
    """As `hf download` fills it."""
    shutil.rmtree(cached / ".no_exist")
    for answer in load({}, {"offline": True}, HF_ENDPOINT=NOWHERE):
        assert_loaded(answer, audio)


def test_a_cache_that_lacks_a_file_says_so(load, cached):
    (weights,) = cached.glob("snapshots/*/pytorch_model.bin")
    weights.unlink()
    no_weights, no_revision = load({"offline": True}, {"offline": True, "revision": "v7"})
    assert_refused(no_weights, "neither model.safetensors nor pytorch_model.bin")
    assert_refused(no_revision, "not in the local cache")


# ---- what is refused ----


def test_places_on_the_hub_that_cannot_be_opened(hub, load, folders, tmp_path):
    hub.problems = {
        "a/gated": (403, "GatedRepo"),
        "a/down": (500, "Down"),
        "a/busy": (429, "Busy"),
        "a/odd": (418, "Odd"),
    }
    hub.add("an/empty", folders / "empty")
    hub.add("no/weights", folders / "no-weights")
    hub.commits["a/broken"] = {"0" * 40: tmp_path / "broken"}
    shutil.copytree(folders / "small", tmp_path / "broken")
    weights = tmp_path / "broken" / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-99])
    texts = {
        "a/private": ["no model 'a/private'", "tiny, suno/bark-small"],
        "a/gated": ["'a/gated'", "restricted", "hf auth login"],
        "a/down": ["config.json of 'a/down'", "'tiny' ships with minibark and needs no download"],
        "a/busy": ["config.json of 'a/busy'"],
        "a/odd": ["config.json of 'a/odd'"],
        "an/empty": ["an/empty has no config.json"],
        "no/weights": ["no/weights has neither model.safetensors nor pytorch_model.bin"],
        "./not/a/repo": ["no model './not/a/repo'"],
        "not/a/repo": ["no model 'not/a/repo'"],
    }
    *others, no_revision, damaged = load(
        *({"name_or_dir": name} for name in texts),
        {"revision": "v9"},
        {"name_or_dir": "a/broken", "revision": "0" * 40},
    )
    for (name, words), answer in zip(texts.items(), others, strict=True):
        assert_refused(answer, *words), name
    assert_refused(no_revision, "suno/bark-small", "no revision 'v9'")
    assert damaged["error"] == "CheckpointError"
    assert "pytorch_model.bin is damaged" in damaged["text"]


def test_a_download_that_breaks_off_leaves_nothing_that_passes_for_a_file(hub, load, tmp_path):
    hub.problems = {REPO: (0, "")}
    assert_refused(load(), "config.json of 'suno/bark-small'")
    assert hub.got("GET") == {"config.json"}
    assert not list(tmp_path.rglob("snapshots/*/*"))


def test_a_server_that_is_no_hub(load):
    answer = load(HF_ENDPOINT="nonsense://nowhere")
    assert_refused(
        answer, "config.json of 'suno/bark-small' is not in the local cache", "cannot be reached"
    )
