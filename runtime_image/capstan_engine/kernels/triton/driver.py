"""The one piece of C that Triton has compiled: made beforehand for an image that has no compiler.

Triton reaches a GPU through a small module of its own, which it compiles from a file in its package when it launches
its first kernel. An image for serving has neither a compiler nor Python's headers: there the module lies beside this
file, named by the hash of its source, so that one of another version of Triton is never taken.

    python driver.py TRITON DIRECTORY    compile it there from Triton's package; needs no GPU, no driver and no Triton
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

_BACKEND: Final = Path("backends", "nvidia")
_SOURCE: Final = _BACKEND / "driver.c"


def path_in(directory: Path, package: Path) -> Path:
    """Where the module for the version of Triton in `package` and for this Python would lie."""
    digest = hashlib.sha256((package / _SOURCE).read_bytes()).hexdigest()
    return directory / f"cuda_utils-{digest[:16]}{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(directory: Path, package: Path) -> Path:
    """Compile it into `directory`. Raises `SubprocessError`, and `OSError` without a compiler."""
    with tempfile.TemporaryDirectory() as scratch:
        # What it is linked with lies on the machines that have a GPU. All that is needed here is the name.
        driver, made = Path(scratch, "libcuda.so.1"), Path(scratch, "cuda_utils.so")
        _compile("-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", driver)
        includes = (package / _BACKEND / "include", sysconfig.get_paths(scheme="posix_prefix")["include"])
        options = ("-O3", "-Wno-psabi", *(f"-I{include}" for include in includes), "-Wl,--no-as-needed")
        _compile(*options, package / _SOURCE, driver, "-o", made)
        made.chmod(0o755)
        path = path_in(directory, package)
        path.write_bytes(made.read_bytes())
        return path


def _compile(*options: str | Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise FileNotFoundError("there is no C compiler; install gcc, or set CC")
    subprocess.run([compiler, "-shared", "-fPIC", *options], check=True)


if __name__ == "__main__":
    print(build(Path(sys.argv[2]), Path(sys.argv[1])))
