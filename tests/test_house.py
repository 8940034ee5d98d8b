"""The house: imports go one way, the model's files are the specification, no file is too long."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minibark"
# `minibark/kernels` is a link, which `rglob` does not follow.
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*.py")})
MODEL = (
    *("config", "tokenizer", "model", "sampling", "decoding"),
    *("semantic", "coarse", "fine", "codec", "voice"),
)
# A room imports from rooms in front of it, and those of one line not from each other.
ORDER = (
    ("_version", "bert_characters", "config", "leftovers", "noise", "precision", "surroundings"),
    ("files", "codec_stream", "sampling"),
    ("tokenizer", "voice", "codec", "model", "audio"),
    ("text",),
    ("decoding",),
    ("semantic", "coarse", "fine"),
    ("checkpoint",),
    ("detect",),
    ("kernels",),
    ("cpu", "gpu"),
    ("fast",),
    ("options",),
    ("pipeline",),
    ("stages",),
    ("speech",),
    ("bark",),
    ("study",),
    ("serve",),
    ("commands",),
    ("__init__",),
    ("suno", "hf"),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def module(path: Path) -> str:
    """A file's name below the package, dots between: `cpu.int8`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, wherever in it, by their names below it."""
    parts = path.relative_to(PACKAGE).parts[:-1]
    names = {module(other) for other in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "minibark" for alias in node.names)
        if not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            assert (node.module or "").split(".")[0] not in ("minibark", "kernels"), path
            continue
        base = [*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]
        for alias in node.names:
            inner = ".".join([*base, *alias.name.split(".")])
            found.add(inner if inner in names else ".".join(base) or "__init__")
    return found


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_one_way(path):
    own = module(path)
    for other in imports(path):
        if room(own) == room(other):
            continue
        assert FLOOR[room(other)] < FLOOR[room(own)], f"{own} imports {other}"


def test_there_is_no_circle_in_any_room():
    graph = {module(path): imports(path) for path in FILES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done and name in graph:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert len(done) == len(FILES)


def test_every_room_is_known_and_every_name_in_the_order_is_written_once():
    assert {room(module(path)) for path in FILES} <= set(FLOOR)
    assert len(FLOOR) == sum(map(len, ORDER))


def test_detect_needs_nothing_of_bark():
    files = [path for path in FILES if room(module(path)) == "detect"]
    needs = {room(name) for path in files for name in imports(path)}
    assert files
    assert needs <= {"detect", "files", "checkpoint", "config", "surroundings"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_is_unpickled(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve"}
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in ("pickle", "marshal", "shelve", "torch.serialization")
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "torch.load"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


def test_the_model_is_read_in_an_evening():
    lines = [len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in MODEL]
    assert sum(lines) <= 1850


@pytest.mark.parametrize("name", MODEL)
def test_the_model_s_files_name_no_fast_path(name):
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    code = "\n".join(ast.unparse(node) for node in ast.parse(text).body)
    words = r"\b(mkldnn|onednn|quantized|int8|int4|triton|cuda_graph|product_dtype|early|expect)\b"
    assert not re.search(words, code, re.IGNORECASE)
    assert not {room(other) for other in imports(PACKAGE / f"{name}.py")} & {"cpu", "gpu", "fast"}


def test_no_benchmark_and_no_recipe_reaches_for_what_is_private():
    for folder in ("benchmarks", "weights/recipe"):
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minibark"):
                    private = [a.name for a in node.names if a.name.startswith("_")]
                    assert not private, (path.name, private)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    is_ours = node.value.id in ("bark", "minibark", "model", "decoder", "pipeline")
                    assert not (is_ours and re.match("_[a-z]", node.attr)), (path.name, node.attr)
