"""Rules of the repository that no type checker knows: what may be imported, read and written where."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.core.card import REGISTRIES, Registry

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "stretto").rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BINARIES = {".so", ".dylib", ".dll", ".pyd", ".o", ".a", ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".whl"}
# Written in two parts, so that this file does not contain what it forbids.
MACHINE_PATHS = re.compile(r"(?<![\w.:/-])/" + r"(?:work|root|opt/wheels|opt/pypi|tmp/probe|tmp/models|home/\w+)\b")


def tracked(root: Path = ROOT) -> list[Path]:
    """Files that git has, as in a clone; what else lies in a working folder is its owner's. Skips without git."""
    if not (root / ".git").exists():
        pytest.skip(f"{root.name} is no git checkout: nothing says which files belong to it")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [path for path in (root / name for name in done.stdout.split("\0") if name) if path.is_file()]


def packaged() -> list[Path]:
    """What a wheel that is built here takes along, tracked or not."""
    return [path for path in (ROOT / "stretto").rglob("*") if path.is_file()]


# -- what the package may do -------------------------------------------------------------------------------------------


def violations(source: str) -> Iterator[str]:
    """What a module does that no module of the package may do: load code from data, or run text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        yield from (f"line {node.lineno}: import {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in {"eval", "exec", "compile", "__import__", "os.system", "yaml.load", "yaml.unsafe_load"}:
                yield f"line {node.lineno}: {name}(...)"
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield f"line {node.lineno}: torch.load without weights_only=True"
            if keywords.get("shell") == "True" or keywords.get("allow_pickle") == "True":
                yield f"line {node.lineno}: {name} with shell or allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_data_never_becomes_code(path: Path) -> None:
    assert not list(violations(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "import torch.x, marshal as m",
        "eval('1')",
        "exec(text)",
        "yaml.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "subprocess.run('ls', shell=True)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_the_rule_sees_what_it_forbids(line: str) -> None:
    assert list(violations(line))


def test_the_rule_lets_harmless_code_pass() -> None:
    assert not list(violations("import re\nre.compile('x')\nmodel.eval()\ntorch.load(f, weights_only=True)"))


def reads_environment(source: str) -> list[int]:
    """Line numbers where a module touches the environment of the process."""
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) and node.module == "os" else []
        is_attribute = isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv", "os.putenv"}
        if is_attribute or {"environ", "getenv", "putenv"} & set(names):
            found.append(node.lineno)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['X']", "import os\nos.getenv('X')", "from os import environ"]
)
def test_reading_the_environment_is_seen(source: str) -> None:
    assert reads_environment(source)


def test_the_environment_is_read_in_one_place() -> None:
    places = {path.relative_to(ROOT).as_posix() for path in SOURCES if reads_environment(path.read_text())}
    assert places == {"stretto/core/env.py"}


# -- one idea, one class -----------------------------------------------------------------------------------------------

WIDEST = 150  # lines from `class` to its end; more is two ideas


def wide_classes(source: str) -> dict[str, int]:
    """The classes of a module that are wider than `WIDEST`, wherever they stand, and their lines."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    lines = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in classes}
    return {name: count for name, count in lines.items() if count > WIDEST}


def test_no_class_is_wide() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": count
        for path in SOURCES
        for name, count in wide_classes(path.read_text(encoding="utf-8")).items()
    }
    assert not found


def test_a_wide_class_is_seen() -> None:
    body = "\n".join(["        pass"] * (WIDEST - 1))
    assert wide_classes(f"if x:\n    class A:\n{body}\n        pass") == {"A": WIDEST + 1}
    assert not wide_classes(f"if x:\n    class A:\n{body}")


# -- what the repository may contain -----------------------------------------------------------------------------------


def test_no_file_names_a_place_on_one_machine() -> None:
    found = []
    for path in tracked():
        if path.suffix not in BINARIES:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in MACHINE_PATHS.finditer(text)]
    assert not found


@pytest.mark.parametrize("part", ["work/main", "root/.cache", "tmp/probe/bin", "home/someone"])
def test_places_on_a_machine_are_seen(part: str) -> None:
    assert MACHINE_PATHS.search(f"see /{part}")
    assert not MACHINE_PATHS.search(f"https://example.org/{part}")


def test_no_compiled_or_downloaded_files() -> None:
    assert not [path.relative_to(ROOT).as_posix() for path in (*packaged(), *tracked()) if path.suffix in BINARIES]


def test_only_what_git_has_is_held_to_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # of a hook that runs the tests: they would name another repository
    kept, loose = tmp_path / "ein Überblick.md", tmp_path / "run.log"
    for path in (kept, loose, tmp_path / "gone.md"):
        path.write_text("text")
    with pytest.raises(pytest.skip.Exception):
        tracked(tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", kept.name, "gone.md"], cwd=tmp_path, check=True)
    (tmp_path / "gone.md").unlink()
    assert tracked(tmp_path) == [kept]


# -- importing ---------------------------------------------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_imports_neither_torch_nor_numpy() -> None:
    done = python("-X", "importtime", "-m", "stretto", "--help")
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "stretto.cli" in imported
    assert not {name for name in imported if name.split(".")[0] in {"torch", "numpy"}}


def test_every_module_imports_without_triton() -> None:
    done = python(
        "-c",
        "import importlib, pkgutil, sys\n"
        "sys.modules['triton'] = None\n"  # import triton -> ModuleNotFoundError
        "import stretto\n"
        "names = [m.name for m in pkgutil.walk_packages(stretto.__path__, 'stretto.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))",
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(SOURCES) - 1  # all but stretto/__init__.py


# -- cards -------------------------------------------------------------------------------------------------------------

FILLERS = [(registry, name) for registry in REGISTRIES for name in registry.names()]


@pytest.mark.parametrize(("registry", "name"), FILLERS, ids=[f"{r.socket}-{name}" for r, name in FILLERS])
def test_a_card_introduces_its_file(registry: Registry, name: str) -> None:
    card = registry.card(name)
    assert card.name == name, "the name of a filler is the name of its file"
    assert card.idea and "\n" not in card.idea and not card.idea.endswith(".")
    assert card.paper, "an arXiv id, or the name of a format"


# -- what the pages say ------------------------------------------------------------------------------------------------


def names_in(source: str) -> set[str]:
    """The names that a module defines at its top, and `Class.method` of its classes."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_what_the_architecture_names_is_there() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`([\w/]+\.py): ([\w.]+)`", page)
    assert len(named) >= 20, "the table of decisions is there"
    for file, name in named:
        path = next((root / file for root in (ROOT, ROOT / "stretto") if (root / file).is_file()), None)
        assert path is not None, f"{file} is not there"
        assert name in names_in(path.read_text()), f"{file} has no {name}"
    folders = re.findall(r"^\| (`[^|]+`) \|", page, re.M)
    listed = {name for cell in folders for name in re.findall(r"`(\w+)/`", cell)}
    assert listed == {path.parent.name for path in (ROOT / "stretto").glob("*/__init__.py")}, "the table of packages"
