"""How long loading a checkpoint takes beside reading its bytes, from the disk and from the page cache; and its memory.

    python tests/bench/loading.py [--shape 1.1b] [--threads 2] [--rounds 3]

In each round dd reads the file and the engine's weights are loaded in a process of their own, first with nothing of the
file in the page cache and later with all of it. What is timed is all that lies between a directory and a decoder: read,
check and pack. Prints medians in MB/s, and what the process held at its peak beside the libraries.
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
SPARE_BYTES = 2 << 30
"""For the KV cache, once the weights are loaded."""


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

    def dd(*how: str) -> float:
        began = time.monotonic()
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=8M", "status=none", *how], check=True)
        return time.monotonic() - began

    size = file.stat().st_size
    print(f"{arguments.shape}, {size / MIB:,.0f} MiB, {arguments.threads} thread(s), {arguments.quantization}\n")
    print("| | ours MB/s | dd MB/s | ratio | dd, direct MB/s |\n|---|---|---|---|---|")
    readers = (dd, ours, lambda: dd("iflag=direct"))
    for where, prepare in (("disk", forget), ("page cache", lambda _: None)):
        taken = [[timed(file, prepare, reader) for reader in readers] for _ in range(arguments.rounds)]
        theirs, mine, direct = (size / 1e6 / statistics.median(column) for column in zip(*taken, strict=True))
        print(f"| {where} | {mine:,.0f} | {theirs:,.0f} | {mine / theirs:.2f} | {direct:,.0f} |", flush=True)
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
    """Seconds of loading, and bytes held at its peak beside what was held before."""
    # Here and not above: whoever compares reads no weights.
    import torch

    from capstan_engine import kernels
    from capstan_engine.models.families import read_spec
    from capstan_engine.models.loading import load_decoder
    from capstan_engine.quant.choose import choose
    from capstan_engine.runner import machine

    torch.set_num_threads(threads)
    machine.allocate_in_one_place()
    spec, form, backend = read_spec(directory), choose({}, quantization), kernels.choose("cpu")
    before = told("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    began = time.monotonic()
    with torch.inference_mode():
        decoder = load_decoder(
            directory,
            spec,
            form,
            backend,
            dtype=torch.bfloat16,
            num_positions=512,
            spare_bytes=SPARE_BYTES,
            progress=lambda _done, _total: machine.give_back_freed_memory(),
        )
    taken = {"seconds": time.monotonic() - began, "peak": told("VmHWM") - before}
    del decoder
    return taken


def told(line: str) -> int:
    """Bytes, as the kernel counts them for this process."""
    found = re.search(line + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    main()
