"""Triton reaches a GPU without a compiler, as in the engine's image; where it cannot, the error says what to do.

There is no GPU here either: the driver's library is one whose functions all succeed and do nothing.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import triton

from capstan_engine.kernels.triton import driver

TRITON = Path(triton.__file__).parent
HEADER = Path(sysconfig.get_paths(scheme="posix_prefix")["include"], "Python.h")
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or None in (shutil.which("gcc"), shutil.which("nm")) or not HEADER.exists(),
    reason="needs gcc, nm and Python's headers",
)
PROGRAM = """
import sys
import torch
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.triton import machine

torch.cuda.is_available = lambda: True
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda _device: (9, 0)
machine.__file__ = sys.argv[1] + "/machine.py"
try:
    machine.reach()
except ConfigurationError as error:
    print(error)
else:
    import triton
    print(triton.runtime.driver.active.utils.load_binary)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("image")
    program = Path(driver.__file__)
    subprocess.run([sys.executable, program, TRITON, directory], check=True, cwd=directory, stdout=subprocess.DEVNULL)
    return directory


@pytest.fixture
def without_compiler(made: Path, tmp_path: Path) -> dict[str, str]:
    """An environment with the driver's library, and nothing that a program could be found in."""
    listed = ["nm", "--dynamic", "--undefined-only", str(driver.path_in(made, TRITON))]
    symbols = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
    source = "".join(f"int {name}(void) {{ return 0; }}\n" for name in symbols if name.startswith("cu"))
    library = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(library, check=True, input=source, text=True)
    return {
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }


def run(directory: Path, environment: dict[str, str]) -> str:
    program = [sys.executable, "-c", PROGRAM, str(directory)]
    return subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout


@needs_compiler
def test_what_was_compiled_beforehand_is_taken(made: Path, without_compiler: dict[str, str]) -> None:
    assert "load_binary" in run(made, without_compiler)


@needs_compiler
def test_without_it_and_without_a_compiler_the_error_names_both(
    tmp_path: Path, without_compiler: dict[str, str]
) -> None:
    said = run(tmp_path, without_compiler)
    assert said.startswith("device: Triton cannot reach the GPU")
    assert "install gcc and Python's headers" in said


def test_one_of_another_version_of_triton_is_not_taken(tmp_path: Path) -> None:
    package = tmp_path / "triton"
    (package / "backends" / "nvidia").mkdir(parents=True)
    (package / "backends" / "nvidia" / "driver.c").write_text("int other;")
    assert driver.path_in(tmp_path, package) != driver.path_in(tmp_path, TRITON)
