"""Takes out of requirements.lock what one image needs: versions, markers and hashes as they stand there.

    python3 locked.py --extra gateway --extra operator --output light.txt
    python3 locked.py --package torch --output torch.txt

Resolves nothing and asks no index: the lock says of each package whose requirement brought it in (`# via`), and that
relation, followed from the roots, is the answer. Knows no platform; markers travel along and are judged at
installation. The surprising idea: a package is told by its name alone, so the optional parts of a dependency count as
needed by all who need the dependency. The result can be a little too large, never too small.

Runs in a builder stage, before anything is installed: standard library only.
"""

import argparse
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# What of torch's requirements serves an accelerator; PyTorch's own CPU build does not ask for them.
_ACCELERATOR = re.compile(r"nvidia-|cuda-|triton$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Locked:
    """One package of the lock: its name, its lines up to the last hash, and whose requirement it is."""

    name: str
    text: str
    via: frozenset[str]


def read_lock(text: str) -> tuple[Locked, ...]:
    """The packages of a lock as `uv pip compile --generate-hashes` writes it, in its order."""
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    return tuple(_locked(block) for block in blocks if "==" in block.partition("\n")[0])


def closure(lock: Iterable[Locked], roots: Iterable[str]) -> frozenset[str]:
    """The roots and all that they bring in. Raises ValueError for a root that is not in the lock."""
    brings: dict[str, set[str]] = {}
    known = set()
    for package in lock:
        known.add(package.name)
        for parent in package.via:
            brings.setdefault(parent, set()).add(package.name)
    needed: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in known:
            raise ValueError(f"{name} is not in the lock; run `make lock`")
        if name not in needed:
            needed.add(name)
            waiting += brings.get(name, ())
    return frozenset(needed)


def direct_requirements(pyproject: Mapping[str, object], extras: Iterable[str]) -> tuple[str, ...]:
    """Names of what the project itself and the `extras` ask for. Raises ValueError for an unknown extra."""
    project = pyproject["project"]
    assert isinstance(project, dict)
    optional = project["optional-dependencies"]
    wanted = list(project["dependencies"])
    for extra in extras:
        if extra not in optional:
            raise ValueError(f"pyproject.toml has no extra {extra!r}; there are {', '.join(optional)}")
        wanted += optional[extra]
    return tuple(_normal(requirement) for requirement in wanted)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the subset to a file."""
    parser = argparse.ArgumentParser(description="Take out of requirements.lock what one image needs.")
    parser.add_argument(
        "--extra", action="append", default=[], help="an extra of pyproject.toml, and the project's own"
    )
    parser.add_argument("--package", action="append", default=[], help="a package and what it brings in")
    parser.add_argument("--minus", action="append", default=[], help="leave out a package and what it brings in")
    parser.add_argument(
        "--cpu", action="store_true", help="for PyTorch's CPU build: no GPU libraries, and torch without its hashes"
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        lock = read_lock(Path("requirements.lock").read_text())
        direct = direct_requirements(tomllib.loads(Path("pyproject.toml").read_text()), options.extra)
        wanted = closure(lock, (*options.package, *(direct if options.extra else ())))
        wanted -= closure(lock, options.minus)
    except ValueError as error:
        parser.exit(2, f"locked.py: {error}\n")
    chosen = [package for package in lock if package.name in wanted]
    if options.cpu:
        # The lock knows the hashes of the build with CUDA only.
        chosen = [_unhashed(p) if p.name == "torch" else p for p in chosen if not _ACCELERATOR.match(p.name)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(package.text for package in chosen))


def _unhashed(package: Locked) -> Locked:
    return replace(package, text=package.text.partition(" \\\n")[0] + "\n")


def _locked(block: str) -> Locked:
    requirement, _, comments = block.partition("    # via")
    via = (line.strip().lstrip("#").strip() for line in comments.splitlines())
    return Locked(_normal(block), requirement, frozenset(name for name in via if name))


def _normal(requirement: str) -> str:
    """The normalized name that a requirement begins with."""
    match = _NAME.match(requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


if __name__ == "__main__":
    main()
