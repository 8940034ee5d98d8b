"""The wheel, the import and the public names."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import minibark

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_every_module_and_nothing_else(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "minibark/*.py", "kernels/*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {
        name.replace("kernels/", "minibark/kernels/") if name.startswith("kernels/") else name
        for name in tracked
    } | {"minibark/py.typed"}
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
        "heavy = {'huggingface_hub', 'soundfile', 'triton', 'transformers', 'tqdm'}\n"
        "loaded = heavy & (set(sys.modules) - torch_modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_public_names():
    assert sorted(minibark.__all__) == [
        "Bark",
        "BarkConfig",
        "CheckpointError",
        "CodecConfig",
        "FineGPTConfig",
        "GPTConfig",
        "GenerationConfig",
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
