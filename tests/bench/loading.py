"""How long loading a checkpoint takes beside reading its bytes, from the disk and from the page cache; and its memory.

    python tests/bench/loading.py [--shape 1.1b] [--threads 2] [--rounds 3]

In each round dd reads the file and an engine loads it in a process of its own, first with nothing of the file in the
page cache and later with all of it. An engine's time is its start-up phase "load": read, check, pack and allocate;
importing torch is another one. Prints medians in MB/s, and what the process held at its peak beside the libraries.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checkpoints import checkpoint

from capstan_api.engine_args import Quantization

HERE = Path(__file__).parent
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1.1b")
    parser.add_argument("--quantization", default="None", choices=[each.value for each in Quantization])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=Path, metavar="DIRECTORY", help="be the process that loads")
    arguments = parser.parse_args()
    if arguments.load is not None:
        print(json.dumps(load(arguments.load, Quantization(arguments.quantization), arguments.threads)))
        return
    directory = checkpoint(arguments.shape)
    file = directory / "model.safetensors"
    command = [sys.executable, __file__, "--load", str(directory), "--threads", str(arguments.threads)]
    command += ["--quantization", arguments.quantization]
    peaks = set[int]()

    def ours() -> float:
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        peaks.add(found["peak"])
        return float(found["seconds"])

    def dd() -> float:
        began = time.monotonic()
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=8M", "status=none"], check=True)
        return time.monotonic() - began

    size = file.stat().st_size
    print(f"{arguments.shape}, {size / MIB:,.0f} MiB, {arguments.threads} thread(s), {arguments.quantization}\n")
    print("| | ours MB/s | dd MB/s | ratio |\n|---|---|---|---|")
    for where, prepare in (("disk", forget), ("page cache", lambda _: None)):
        taken = [[timed(file, prepare, reader) for reader in (dd, ours)] for _ in range(arguments.rounds)]
        theirs, mine = (size / 1e6 / statistics.median(column) for column in zip(*taken, strict=True))
        print(f"| {where} | {mine:,.0f} | {theirs:,.0f} | {mine / theirs:.2f} |", flush=True)
    print(f"\nat its peak {min(peaks) / MIB:,.0f} to {max(peaks) / MIB:,.0f} MiB, libraries not counted")


def timed(file: Path, prepare: Callable[[Path], None], reader: Callable[[], float]) -> float:
    prepare(file)
    return reader()


def forget(file: Path) -> None:
    """Have the page cache hold nothing of it."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(directory: Path, quantization: Quantization, threads: int) -> dict[str, float]:
    """Seconds of the phase "load", and bytes held at its peak beside what was held before."""
    # Here and not above: whoever compares reads no weights.
    import torch  # noqa: F401
    from ours import Ours

    before = told("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    engine = Ours(directory, sequences=1, longest=512, kv_tokens=512, quantization=quantization, threads=threads)
    return {"seconds": engine.startup_s["load"], "peak": told("VmHWM") - before}


def told(line: str) -> int:
    """Bytes, as the kernel counts them for this process."""
    found = re.search(line + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    main()
