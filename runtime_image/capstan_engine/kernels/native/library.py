"""The library compiled of the C++ beside this file: found, or compiled once where there is a compiler, or absent.

A part that is absent costs speed and nothing else: whoever asks has a twin in torch. The surprising idea: the library
is plain C++ with a C interface, called with addresses. It knows nothing of torch's headers, so it compiles in seconds,
and it is named by the hash of its source, so it fits every version of torch and is never stale. OpenMP is resolved in
the process, where torch has loaded its own: two of them would fight for the processors.

It is compiled for a level of instructions, never for the processor that compiles: what was compiled elsewhere serves
every processor of its level.

    python library.py DIRECTORY       compile it there for every level; for an image without a compiler, where this
                                      file lies
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_SOURCES: Final = ("products.cpp", "coded.cpp", "integers.cpp", "step.cpp", "layers.cpp")
_OPTIONS: Final = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")


@dataclass(frozen=True, slots=True)
class Level:
    """Instructions that a processor has all of, or the library is not for it."""

    name: str
    flags: frozenset[str]
    """As /proc/cpuinfo calls them."""

    @property
    def options(self) -> tuple[str, ...]:
        """For the compiler."""
        return (*_OPTIONS, *(f"-m{flag.replace('_', '')}" for flag in sorted(self.flags)))


_AVX512: Final = frozenset(("fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"))
LEVELS: Final = (
    Level("avx512bf16", _AVX512 | {"avx512_bf16"}),
    Level("avx512vnni", _AVX512),
    Level("avx2", frozenset(("fma", "avx2"))),
)
"""The best first."""
_TYPES: Final = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
_SIGNATURES: Final = {
    "capstan_bf16": "ppnp",
    "capstan_bf16_coded": "ppnp",
    "capstan_find_rare": "pnnnp",
    "capstan_encode": "pnnnppp",
    "capstan_int8": "ppnp",
    "capstan_int8_dynamic": "ppnp",
    "capstan_int4": "ppnp",
    "capstan_norm": "pppnnfp",
    "capstan_gate": "pnnp",
    "capstan_rotate_and_write": "pnnnnppppfpp",
    "capstan_decode": "pnnnnppnfp",
    "capstan_most_likely": "pnnp",
    "capstan_layers": "pnppppp",
}
"""Arguments of each function: a pointer, a number or a float. None returns anything. Not every level codes weights."""
_COMPILE_TIMEOUT_S: Final = 120

_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The library, ready to be called on this processor; None where there is none. The log says which, and why not."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    level = best_level(processor_flags())
    if level is None:
        _log.warning("the engine computes with torch alone, which is slower: this processor has no AVX2")
        return None
    try:
        path = compiled(level)
        found = load(path)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("the engine computes with torch alone, which is slower: %s", error)
        return None
    _log.info("the engine computes with %s", path)
    return found


def best_level(flags: Set[str]) -> Level | None:
    """The best one that a processor with these flags has; None where it has none."""
    return next((level for level in LEVELS if level.flags <= flags), None)


def compiled(level: Level) -> Path:
    """Where the library of a level is, beside this file or in the user's cache; compiled now if it is nowhere.

    Raises as `build` does.
    """
    places = (directory / _name(level) for directory in (_HERE, cache_directory()))
    return next((path for path in places if _is_ours(path)), None) or build(cache_directory(), level)


def load(path: Path) -> ctypes.CDLL:
    """The library in a file, its functions declared. The processor must have its level. Raises `OSError`."""
    found = ctypes.CDLL(str(path))
    for name, signature in _SIGNATURES.items():
        if not hasattr(found, name):
            continue
        function = getattr(found, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
    return found


def required() -> ctypes.CDLL:
    """The library, for those who were chosen because there is one."""
    found = library()
    assert found is not None
    return found


def build(directory: Path, level: Level) -> Path:
    """Compile into `directory`. Raises `OSError` without a compiler or a place to write, `SubprocessError`."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler; install g++, or set CXX")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        linked = Path(scratch, "capstan.so")
        objects = [str(Path(scratch, source).with_suffix(".o")) for source in _SOURCES]
        for source, made in zip(_SOURCES, objects, strict=True):
            _run(compiler, *level.options, "-c", str(_HERE / source), "-o", made)
        # Linked without OpenMP, which is found in the process.
        _run(compiler, "-shared", *objects, "-o", str(linked))
        linked.chmod(0o755)
        # At once: whoever starts beside us finds all of it or nothing.
        return linked.replace(directory / _name(level))


def cache_directory() -> Path:
    """Where what is compiled on this machine is kept for its next start; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "capstan")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(f"{command[0]} failed: {done.stderr.strip().splitlines()[:1]}")


def _name(level: Level) -> str:
    digest = hashlib.sha256(" ".join(level.options).encode())
    for source in sorted((*_HERE.glob("*.cpp"), *_HERE.glob("*.h"))):
        digest.update(source.read_bytes())
    return f"capstan-{level.name}-{digest.hexdigest()[:16]}.so"


def processor_flags() -> frozenset[str]:
    """Of this machine's first processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _is_ours(path: Path) -> bool:
    """Nobody but this user or root can have put it there."""
    if not path.exists():
        return False
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


if __name__ == "__main__":
    for every in LEVELS:
        print(build(Path(sys.argv[1]), every))
