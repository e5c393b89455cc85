"""The library compiled of the C++ beside this file: found, or compiled once where there is a compiler, or absent.

A part that is absent costs speed and nothing else: whoever asks has a twin in torch. The surprising idea: the library
is plain C++ with a C interface, called with addresses. It knows nothing of torch's headers, so it compiles in seconds,
and it is named by the hash of its source, so it fits every version of torch and is never stale. OpenMP is resolved in
the process, where torch has loaded its own: two of them would fight for the processors.

    python library.py DIRECTORY       compile it there; for an image without a compiler, where this file lies
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
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_SOURCES: Final = ("products.cpp", "step.cpp")
_OPTIONS: Final = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
)
_TYPES: Final = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
_SIGNATURES: Final = {
    "capstan_bf16": "pnnnppp",
    "capstan_int8": "pnnnpppp",
    "capstan_int4": "pnnnnppppp",
    "capstan_norm": "pppnnfp",
    "capstan_gate": "pnnp",
    "capstan_rotate_and_write": "pnnnnppppfpp",
    "capstan_decode": "pnnnnnpnpnnpfp",
}
"""Arguments of each function: a pointer, a number or a float. None returns anything."""
_COMPILE_TIMEOUT_S: Final = 120

_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The library, ready to be called on this processor; None where there is none, and the log says why."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        path = next((path for path in _places() if _is_ours(path)), None) or build(_cache())
        found = ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("the engine computes with torch alone, which is slower: %s", error)
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
    return found if found.capstan_supported() else None


def required() -> ctypes.CDLL:
    """The library, for those who were chosen because there is one."""
    found = library()
    assert found is not None
    return found


def build(directory: Path) -> Path:
    """Compile into `directory`. Raises `OSError` without a compiler or a place to write, `SubprocessError`."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler; install g++, or set CXX")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        linked = Path(scratch, "capstan.so")
        objects = [str(Path(scratch, source).with_suffix(".o")) for source in _SOURCES]
        for source, made in zip(_SOURCES, objects, strict=True):
            _run(compiler, *_OPTIONS, "-c", str(_HERE / source), "-o", made)
        # Linked without OpenMP, which is found in the process.
        _run(compiler, "-shared", *objects, "-o", str(linked))
        linked.chmod(0o755)
        # At once: whoever starts beside us finds all of it or nothing.
        return linked.replace(directory / _name())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(f"{command[0]} failed: {done.stderr.strip().splitlines()[:1]}")


def _name() -> str:
    digest = hashlib.sha256(" ".join(_OPTIONS).encode())
    for source in sorted((*_HERE.glob("*.cpp"), *_HERE.glob("*.h"))):
        digest.update(source.read_bytes())
    return f"capstan-{digest.hexdigest()[:16]}.so"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "capstan")


def _places() -> Iterator[Path]:
    yield _HERE / _name()
    yield _cache() / _name()


def _is_ours(path: Path) -> bool:
    """Nobody but this user or root can have put it there."""
    if not path.exists():
        return False
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
