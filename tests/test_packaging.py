"""The wheel, the import and the public names."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import checkpoints as made
import pytest

import minibark
from minibark.checkpoint.voices import Voices

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Of a copy, since another worker may build at the same time.
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, source],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_every_module_and_nothing_else(wheel):
    tracked = subprocess.run(
        [
            "git",
            "ls-files",
            "minibark/*.py",
            "minibark/serve",
            "minibark/study",
            "kernels/*.py",
            "weights/tiny",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    places = {"kernels/": "minibark/kernels/", "weights/": "minibark/"}
    expected = {"minibark/py.typed"}
    for name in tracked:
        folder = next((folder for folder in places if name.startswith(folder)), "")
        expected.add(places.get(folder, "") + name.removeprefix(folder))
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
        licences = [n for n in archive.namelist() if n.endswith("LICENSE")]
    assert expected <= names
    assert all(name.startswith("minibark/") for name in names)
    assert not [name for name in names if "test" in name or name.startswith("kernels/")]
    assert licences
    required = {
        line.split(":")[1].strip().split(">")[0].split(";")[0].strip()
        for line in text.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    }
    assert required == {"torch", "numpy", "safetensors", "huggingface_hub", "soundfile"}


@pytest.mark.slow
def test_the_wheel_runs_where_the_checkout_is_not(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import json, sys, minibark, minibark.kernels\n"
        "try:\n    import kernels; bare = True\nexcept ImportError:\n    bare = False\n"
        "print(json.dumps([minibark.__file__, minibark.kernels.__file__, bare]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    package, kernels, bare = json.loads(done.stdout)
    assert package.startswith(str(site)) and kernels.startswith(str(site))
    assert not bare


# ---- the model that ships inside ----

SHIPPED = {"config.json", "model.safetensors", "vocab.txt", "voices/me.npz", "README.md"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository in which `tiny` is random and very small."""
    root = tmp_path_factory.mktemp("checkout") / "minibark"
    left_out = shutil.ignore_patterns(
        ".*", "*.egg-info", "build", "dist", "tests", "tiny", "recipe"
    )
    shutil.copytree(ROOT, root, symlinks=True, ignore=left_out)
    (root / "minibark" / "tiny").symlink_to(os.readlink(ROOT / "minibark" / "tiny"))
    made.random_voice(made.TINY.generation).save(root.parent / "me.npz")
    voices = Voices.from_directory(root.parent)
    minibark.Bark(made.TINY, voices=voices, device="cpu").save(root / "weights" / "tiny", ["me"])
    (root / "weights" / "tiny" / "README.md").write_text("A model card.")
    return root


@pytest.fixture(scope="module")
def built(checkout):
    """The folder with the sdist of that copy, and the wheel that was made from the sdist."""
    command = [sys.executable, "-m", "build", "--outdir", checkout.parent / "built", checkout]
    subprocess.run(command, check=True, capture_output=True)
    return checkout.parent / "built"


DRIVER = """
import contextlib, io, json, sys
site, commands = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, site)
from minibark.commands import main
assert main.__file__.startswith(site)
for command in commands:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main.main(command)
    print(json.dumps([code, said.getvalue()]))
"""


def run_from(site, cwd, *commands):
    """Run commands of the minibark in a folder, without network: [exit code, all it said] each."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, site, json.dumps(commands)],
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["wheel", "sdist", "checkout"])
def test_tiny_is_inside_and_a_folder_of_that_name_is_not_it(form, checkout, built, tmp_path):
    site, cwd = tmp_path / "site", tmp_path / "cwd"
    if form == "wheel":
        with zipfile.ZipFile(*built.glob("*.whl")) as archive:
            archive.extractall(site)
    elif form == "sdist":
        with tarfile.open(*built.glob("*.tar.gz")) as archive:
            archive.extractall(site, filter="data")
        (site,) = site.iterdir()
    else:
        site = checkout
    inside = site / "minibark" / "tiny"
    files = {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()}
    assert files == SHIPPED
    (cwd / "tiny").mkdir(parents=True)
    say = ["say", "Hi.", "--model", "tiny", "--voice", "me", "--seed", "0", "-q", "-o", "out.wav"]
    say += ["--max-duration", "0.3"]
    info, voices, said, converted, mixed, folder = run_from(
        site,
        cwd,
        ["info", "tiny"],
        ["voices", "--model", "tiny"],
        say,
        ["convert", "tiny", "copy", "--precision", "int8", "-q"],
        ["info", "copy", "--stage", "fine=tiny"],
        ["info", "./tiny"],
    )
    assert info[0] == 0 and "voices 1" in info[1], info
    assert (voices[0], voices[1].split()[0]) == (0, "me")
    assert said == converted == [0, ""]
    assert (cwd / "out.wav").stat().st_size > 44
    assert mixed[0] == 0 and mixed[1].count("int8") == 2, mixed
    assert folder == [1, "minibark: ./tiny has no config.json; the checkpoint is incomplete\n"]


@pytest.mark.torture
@pytest.mark.slow
def test_a_package_without_tiny_builds_and_says_so(checkout, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkout, bare, symlinks=True, ignore=shutil.ignore_patterns("weights"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, bare]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(*tmp_path.glob("*.whl")) as archive:
        archive.extractall(tmp_path / "site")
    commands = ["info", "tiny"], ["voices", "--model", "tiny"], ["say", "Hi.", "--model", "tiny"]
    for site in (bare, tmp_path / "site"):
        for code, text in run_from(site, tmp_path, *commands):
            assert code == 1
            assert text.startswith("minibark: this minibark was built without the model 'tiny'")
            assert len(text.splitlines()) == 1


def test_import_does_nothing_beyond_importing():
    code = (
        "import os, sys, torch\n"
        "before = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32,"
        " torch.get_default_dtype(), torch.random.initial_seed(), dict(os.environ))\n"
        "torch_modules = set(sys.modules)\n"
        "import minibark\n"
        "after = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32,"
        " torch.get_default_dtype(), torch.random.initial_seed(), dict(os.environ))\n"
        "assert before == after\n"
        "heavy = {'huggingface_hub', 'soundfile', 'triton', 'transformers', 'tqdm', 'sentencex',"
        " 'starlette', 'uvicorn'}\n"
        "loaded = heavy & (set(sys.modules) - torch_modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_public_names():
    assert sorted(minibark.__all__) == [
        "BackendError",
        "Bark",
        "BarkConfig",
        "CheckpointError",
        "CodecConfig",
        "DialogError",
        "FineGPTConfig",
        "GPTConfig",
        "GenerationConfig",
        "LongOptions",
        "MissingExtraError",
        "Options",
        "SAMPLE_RATE",
        "Tokenizer",
        "Voice",
        "VoiceError",
        "__version__",
        "convert",
        "save_audio",
    ]
    for name in minibark.__all__:
        assert getattr(minibark, name) is not None
    assert (ROOT / "minibark" / "py.typed").is_file()
