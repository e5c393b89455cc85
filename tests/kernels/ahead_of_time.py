"""Compile kernels for GPUs that are not there, and tell what the compiler made of them.

    python ahead_of_time.py ARCHITECTURE

A program and not part of a test: the tests run under Triton's interpreter, where nothing can be compiled. Prints one
`Report` as JSON for each kernel and tile.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from capstan_engine.kernels.triton.decode import combine_kernel, decode_kernel
from capstan_engine.kernels.triton.elementwise import norm_kernel, silu_and_mul_kernel
from capstan_engine.kernels.triton.gemm import gemm_kernel
from capstan_engine.kernels.triton.logits import add_kernel, count_kernel, penalize_kernel
from capstan_engine.kernels.triton.prefill import prefill_kernel
from capstan_engine.kernels.triton.rotary import rotate_and_write_kv_kernel
from capstan_engine.kernels.triton.sampling import choose_kernel
from capstan_engine.kernels.triton.tiles import DECODE, GEMM, PREFILL, Shape, Tile, prefill_tile
from capstan_engine.pieces import MOST_PIECES

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = {2: "bf16", 4: "fp32"}


@dataclass(frozen=True)
class Job:
    """A kernel with its constants and the types of its arguments: `*bf16`, `i32`, or `i32:16` for a multiple of 16."""

    name: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    multiplies: bool = False
    rows: int = 0

    def compiled(self, architecture: int) -> Any:
        signature, attributes, constants = {}, {}, {}
        for index, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name] = "constexpr"
                constants[(index,)] = self.constants[name]
                continue
            kind = self.arguments[name]
            signature[name] = kind.removesuffix(":16")
            unaligned = self.kernel.params[index].do_not_specialize_on_alignment
            if (kind.startswith("*") and not unaligned) or kind.endswith(":16"):
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


@dataclass(frozen=True)
class Report:
    """What one compiled kernel takes."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    shared_limit: int
    multiplies: bool
    rows: int
    """Of the left operand of its products."""
    instructions: list[str]
    """Those of matrix products and of asynchronous copies that are used."""


def report(job: Job, architecture: int) -> Report:
    binary = job.compiled(architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    wanted = ("wgmma.mma_async", "tcgen05.mma", "mma.sync", "cp.async")
    return Report(
        job.name,
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        binary.metadata.shared,
        SHARED_BYTES[architecture],
        job.multiplies,
        job.rows,
        [name for name in wanted if name in binary.asm["ptx"]],
    )


# Bytes that one program may have (CUDA C++ Programming Guide, technical specifications). An sm_80 has more, but takes
# the same tiles as sm_86 and sm_89, which do not.
SHARED_BYTES = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}


def attention_jobs(architecture: int) -> Iterator[Job]:
    """Every row of the tables, with all that can be asked for at once; then what else the launchers ask for."""
    # Without matrix instructions one architecture is like the other.
    sizes = (2, 4) if architecture == 90 else (2,)
    for shape, tile in DECODE.items():
        if shape.itemsize in sizes:
            yield decode_job("decode", shape, tile)
    for shape in PREFILL:
        if shape.itemsize in sizes:
            yield prefill_job("prefill", shape, prefill_tile(shape, SHARED_BYTES[architecture]), windowed=False)
    shape = Shape(128, 2)
    tile = prefill_tile(shape, SHARED_BYTES[architecture])
    # Seven query heads on each KV head (Qwen2-7B), 32 on the only one (Falcon).
    yield prefill_job("prefill", shape, tile, heads=7, windowed=False)
    if architecture == 90:
        yield decode_job("decode", Shape(64, 2), DECODE[Shape(64, 2)], heads=32)
        yield prefill_job("prefill windowed", shape, tile, windowed=True)


def decode_job(name: str, shape: Shape, tile: Tile, *, heads: int = 4, cache: str | None = None) -> Job:
    dtype = TYPES[shape.itemsize]
    rows = max(tile.rows, heads)
    arguments = _attention_arguments(dtype, cache or dtype) | {
        "pieces": "*i32",
        "num_pieces": "*i32",
        "partial": "*fp32",
        "log_sums": "*fp32",
    }
    constants = _attention_constants(shape, heads) | {"BLOCK_H": rows, "BLOCK_N": tile.keys}
    title = f"{name} {dtype} {cache or ''} {shape.width} wide, {heads} heads, {tile}"
    return Job(title, decode_kernel, arguments, constants, tile.num_warps, tile.num_stages, shape.itemsize == 2, rows)


def prefill_job(
    name: str, shape: Shape, tile: Tile, *, heads: int = 4, windowed: bool, cache: str | None = None
) -> Job:
    dtype = TYPES[shape.itemsize]
    arguments = _attention_arguments(dtype, cache or dtype) | {
        "first_rows": "*i32",
        "starts": "*i32",
        "sinks": f"*{dtype}",
        "out": f"*{dtype}",
        "window": "i32",
        "num_chunks": "i32",
    }
    constants = _attention_constants(shape, heads) | {
        "WINDOWED": windowed,
        "SINKS": True,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
    }
    title = f"{name} {dtype} {cache or ''} {shape.width} wide, {heads} heads, {tile}"
    return Job(
        title, prefill_kernel, arguments, constants, tile.num_warps, tile.num_stages, shape.itemsize == 2, tile.rows
    )


def _attention_arguments(dtype: str, cache: str) -> dict[str, str]:
    return {
        "q": f"*{dtype}",
        "cache": f"*{cache}",
        "tables": "*i32",
        "scale": "fp32",
        "soft_cap": "fp32",
        "q_stride": "i32:16",
        "table_stride": "i32",
        "values": "i64:16",
    }


def _attention_constants(shape: Shape, heads: int) -> dict[str, Any]:
    return {
        "NUM_KV_HEADS": 8,
        "HEADS": heads,
        "WIDTH": shape.width,
        "BLOCK_SIZE": 16,
        "CAPPED": True,
        "BLOCK_D": shape.width,
    }


def other_jobs(architecture: int) -> Iterator[Job]:
    """Llama-3-8B's shapes, and Qwen3's norms of heads."""
    combine = {"partial": "*fp32", "log_sums": "*fp32", "first_pieces": "*i32", "sinks": "*bf16", "out": "*bf16"}
    sizes = {"WIDTH": 128, "SINKS": True, "MOST_PIECES": MOST_PIECES, "BLOCK_P": 16, "BLOCK_D": 128}
    yield Job("combine", combine_kernel, combine, sizes, num_warps=1)
    norm = {"x": "*bf16", "delta": "*bf16", "weight": "*bf16", "out": "*bf16", "eps": "fp32"}
    yield Job("norm", norm_kernel, norm, {"WIDTH": 4096, "ADDS": True, "BLOCK": 4096}, num_warps=16)
    activation = {"x": "*bf16", "out": "*bf16"}
    yield Job("activation", silu_and_mul_kernel, activation, {"WIDTH": 14336, "BLOCK": 1024}, num_warps=4)
    names = ("heads", "cos", "sin", "query_norm", "key_norm", "cache")
    rotary = dict.fromkeys(names, "*bf16") | {"eps": "fp32", "slots": "*i32", "values": "i64:16"}
    sizes = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "WIDTH": 128, "BLOCK_SIZE": 16, "NORMED": True}
    sizes |= {"SATURATES": False, "BLOCK_HEADS": 8, "BLOCK_HALF": 64}
    yield Job("rotate and write", rotate_and_write_kv_kernel, rotary, sizes, num_warps=2)
    vocabulary = {"VOCAB": 128256, "BLOCK": 2048}
    choose = {"logits": "*bf16", "numbers": "*fp32", "dropped": "*fp64", "most": "*i32", "counters": "*i64"}
    yield Job("choose", choose_kernel, choose | {"tokens": "*i64"}, vocabulary | {"PIVOTS": 8}, num_warps=16)
    vocabulary |= {"BLOCK": 1024}
    add = {"logits": "*fp32", "rows": "*i32", "ids": "*i32", "values": "*fp32", "num": "i32"}
    yield Job("add bias", add_kernel, add, vocabulary, num_warps=4)
    count = {"counts": "*i32", "ids": "*i32", "owners": "*i32", "drawn": "*i64", "num": "i32"}
    yield Job("count", count_kernel, count, vocabulary, num_warps=4)
    penalize = {"logits": "*fp32", "counts": "*i32", "rows": "*i32", "strengths": "*fp32"}
    yield Job("penalize", penalize_kernel, penalize, vocabulary, num_warps=4)
    # GPUs before sm_89 have no 8-bit floats.
    if architecture >= 89:
        small = rotary | {"cache": "*fp8e4nv"}
        yield Job("rotate and write fp8", rotate_and_write_kv_kernel, small, sizes | {"SATURATES": True}, num_warps=2)
        shape = Shape(128, 2)
        yield decode_job("decode", shape, DECODE[shape], cache="fp8e4nv")
        tile = prefill_tile(shape, SHARED_BYTES[architecture])
        yield prefill_job("prefill", shape, tile, windowed=False, cache="fp8e4nv")


def gemm_jobs() -> Iterator[Job]:
    """Every tile, with inputs that are a multiple of its step and, for one, with those that are not."""
    arguments = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
    arguments |= {"num_rows": "i32", "num_outputs": "i32:16", "x_stride": "i32:16"}
    for tile in GEMM:
        for inputs in (4096, 4100) if tile == GEMM[1] else (4096,):
            sizes = {"INPUTS": inputs, "BIASED": True}
            sizes |= {"BLOCK_M": tile.rows, "BLOCK_N": tile.outputs, "BLOCK_K": tile.inputs}
            title = f"gemm {inputs} inputs, {tile}"
            yield Job(title, gemm_kernel, arguments, sizes, tile.num_warps, tile.num_stages, True, tile.rows)


if __name__ == "__main__":
    target = int(sys.argv[1])
    for job in (*attention_jobs(target), *other_jobs(target), *gemm_jobs()):
        print(json.dumps(asdict(report(job, target))), flush=True)
