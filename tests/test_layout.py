"""The house keeps its shape: pure parts are pure, nothing unsafe is called, packages are typed and found, no clutter.

import-linter sees imports between packages; what it cannot see (the standard library, calls, texts) is read here from
the source with `ast`.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("crds", "runtime_image", "operator")
PRODUCT = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))
PACKAGES = sorted(path.parent for part in PARTS for path in (ROOT / part).glob("*/__init__.py"))

PURE = sorted(
    [
        *(ROOT / "runtime_image/capstan_engine/scheduler").rglob("*.py"),
        ROOT / "runtime_image/capstan_gateway/routing.py",
        *(ROOT / "operator/capstan_operator/decide").rglob("*.py"),
    ]
)
# Clocks, chance, the environment, the outside world, and logging.
IMPURE_MODULES = {
    "asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "platform", "queue", "random", "secrets",
    "select", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid",
    "warnings",
}  # fmt: skip
# `hash` of a text differs from process to process.
IMPURE_CALLS = {"hash", "input", "open", "print"}
IMPURE_METHODS = {"now", "today", "utcnow", "read_text", "read_bytes", "write_text", "write_bytes"}

UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"__import__", "compile", "eval", "exec"}
UNSAFE_ATTRIBUTES = {"torch.load", "torch.hub", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}

# Heavy packages that a person who types `capstan --help` must not wait for.
HEAVY = {"aiohttp", "fastapi", "matplotlib", "numpy", "prometheus_client", "torch", "transformers", "uvicorn"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def impurities(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [f"imports {name}" for name in imported(tree) if name.partition(".")[0] in IMPURE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            owner, _, method = dotted(node.func).rpartition(".")
            if method in (IMPURE_METHODS if owner else IMPURE_CALLS):
                found.append(f"calls {dotted(node.func)}")
    return found


def dangers(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [f"imports {name}" for name in imported(tree) if name.partition(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in UNSAFE_CALLS:
            found.append(f"calls {dotted(node.func)}")
        if isinstance(node, ast.Attribute) and dotted(node) in UNSAFE_ATTRIBUTES:
            found.append(f"uses {dotted(node)}")
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.value.value is True:
            found += [f"sets {node.arg}"] if node.arg in ("shell", "allow_pickle", "trust_remote_code") else []
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_parts_know_no_clock_chance_environment_or_log(path: Path) -> None:
    assert impurities(path.read_text("utf-8")) == []


def test_product_code_runs_no_foreign_code() -> None:
    assert len(PRODUCT) > 20
    found = {name_of(path): dangers(path.read_text("utf-8")) for path in PRODUCT}
    assert {name: why for name, why in found.items() if why} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from os import environ",
        "def f():\n    import random",
        "datetime.now()",
        "open('x')",
        "p.read_text()",
    ],
)
def test_the_purity_check_notices(line: str) -> None:
    assert impurities(line) != []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from marshal import loads", "eval('1')", "torch.load(path)", "run(c, shell=True)"],
)
def test_the_safety_check_notices(line: str) -> None:
    assert dangers(line) != []


def test_innocent_look_alikes_pass() -> None:
    assert dangers("model.eval()\nre.compile('x')\nsafetensors.torch.load_file(p)\nrun(c, shell=False)") == []
    assert impurities("self.now\nnow = 1.0\ndatetime.fromtimestamp(now, UTC)") == []


def test_the_operators_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator/__init__.py").exists()


def test_every_package_is_typed_and_shipped() -> None:
    # `models` is the folder of shipped models and the scripts that train them, not a package for others to import.
    packages = [package for package in PACKAGES if package.name != "models"]
    assert [name_of(package) for package in packages if not (package / "py.typed").exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(shipped) == [name_of(package) for package in packages]


def test_every_module_says_what_it_is_for() -> None:
    sources = {name_of(path): path.read_text("utf-8") for path in PRODUCT}
    assert [name for name, text in sources.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert [name_of(path) for path in PRODUCT if path.stem in drawers or path.parent.name in drawers] == []


def test_test_folders_are_no_packages_and_their_files_have_unique_names() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    assert [name_of(path) for path in files if path.name == "__init__.py"] == []
    counts = Counter(path.name for path in files if path.name.startswith("test_"))
    assert [name for name, count in counts.items() if count > 1] == []


def own_texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the project, whatever git thinks of it."""
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".jinja", ".sh", ".cfg", ".ini", ".tpl", ".lock"}
    bare = {"Makefile", "Dockerfile", "run", "test", ".importlinter", ".gitignore"}
    folders = [*PARTS, "tests", "docs", "helm", "dashboards", ".ci"]
    candidates = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    candidates += list(ROOT.iterdir())
    for path in sorted(candidates):
        # A tokenizer's vocabulary is learnt from a corpus and may hold any scrap of text.
        if "__pycache__" in path.parts or path.name == "tokenizer.json":
            continue
        if path.is_file() and (path.suffix in kinds or path.name in bare):
            yield path, path.read_text("utf-8")


# Written in pieces, so that this file does not find itself.
PRIVATE = re.compile(r"(?<![\w.~-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"]) + r")/")
REGISTRIES = re.compile("|".join(["py" + r"pi\.org", "pythonhos" + r"ted\.org", r"download\.pyto" + r"rch\.org"]))


def test_no_file_names_somebodys_own_folders_or_a_registry() -> None:
    texts = list(own_texts())
    assert len(texts) > 20
    found = [
        f"{name_of(path)}: {match.group()}"
        for path, text in texts
        for pattern in (PRIVATE, REGISTRIES)
        for match in pattern.finditer(text)
    ]
    assert found == []


def test_the_lock_holds_hashes_and_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = re.findall(r"^[a-z0-9][\w.-]*==", lock, re.MULTILINE)
    hashed = re.findall(r"^[a-z0-9][\w.-]*==[^\n]*\\\n\s+--hash=sha256:", lock, re.MULTILINE)
    assert len(pinned) == len(hashed) > 50


def test_no_work_is_left_for_later() -> None:
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|raise NotImplemented" + "Error")
    assert [name_of(path) for path in PRODUCT if marks.search(path.read_text("utf-8"))] == []


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['capstan', '--help']\n"
        "from capstan_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == "[]"
