"""`capstan plan`: what a model takes of an accelerator's memory, and the largest batch that fits beside it.

Reads config.json alone, so a model can be planned before it is downloaded. The surprising idea: it knows no formula.
The engine derives its `MemoryFigures` and refuses by them before it allocates, and this asks the same functions.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from capstan_api.engine_args import Precision, Quantization
from capstan_api.footprint import Demand, Footprint, MemoryFigures, mebibytes
from capstan_cli.errors import InputError
from capstan_engine.errors import ModelError
from capstan_engine.models.families import read_spec
from capstan_engine.models.spec import ModelSpec
from capstan_engine.quant.storage import STORAGES
from capstan_engine.runner import memory
from capstan_engine.runner.machine import available_memory

MOST_SEQUENCES: Final = 8192
"""The contract's own bound on engine.batching.maxSequences."""
_ITEMSIZES: Final = {"float32": 4, "bfloat16": 2}
ACCELERATORS: Final = {
    "a100-40gb": 40960,
    "a100-80gb": 81920,
    "b200": 183359,
    "h100": 81559,
    "h200": 143771,
    "l4": 23034,
    "l40s": 46068,
}
"""MiB that the driver reports as the total of one device."""


@dataclass(frozen=True)
class Budget:
    """What a plan is for."""

    kind: str
    """`cpu` or `cuda`."""
    memory_bytes: int
    context: int
    """Tokens of every sequence, prompt and output together."""
    max_batched_tokens: int
    block_size: int


@dataclass(frozen=True)
class Row:
    """One way of holding the model. Where not even one sequence fits, the footprint is that of one."""

    precision: str
    quantization: Quantization
    kv_token_bytes: int
    num_sequences: int
    footprint: Footprint
    uncoded_bytes: int = 0
    """What weights take beyond that on a processor without AVX-512."""


def budget(
    accelerator: str, memory_mebibytes: int | None, context: int, max_batched_tokens: int, block_size: int
) -> Budget:
    """Of `cpu`, this machine unless told otherwise, or of a known accelerator. Raises `InputError`."""
    name = accelerator.lower()
    if name == "cpu":
        available = available_memory() if memory_mebibytes is None else memory_mebibytes << 20
        return Budget("cpu", available, context, max_batched_tokens, block_size)
    mib = ACCELERATORS.get(name) if memory_mebibytes is None else memory_mebibytes
    if mib is None:
        known = ", ".join(("cpu", *ACCELERATORS))
        raise InputError(
            f"--accelerator {accelerator} is not known; give its --memory-mebibytes too, or one of {known}"
        )
    return Budget("cuda", mib << 20, context, max_batched_tokens, block_size)


def rows(model: Path, precision: str, quantization: str | None, budget: Budget) -> list[Row]:
    """One for each quantization that can run there, or for that which is named. Raises `InputError`."""
    wanted = _one_of(Precision, "--precision", precision)
    try:
        spec = read_spec(model)
    except ModelError as error:
        raise InputError(str(error)) from None
    if budget.context > spec.max_positions:
        raise InputError(f"--context {budget.context} exceeds the {spec.max_positions} positions of {model}")
    dtype = spec.dtype if wanted is Precision.AUTO else wanted.value.lower()
    rounds = budget.kind == "cpu" and dtype == "bfloat16"
    if quantization is None:
        return [_row(spec, dtype, each, budget) for each in Quantization if rounds or each is Quantization.NONE]
    asked = _one_of(Quantization, "--quantization", quantization)
    if not rounds and asked is not Quantization.NONE:
        raise InputError(f"--quantization {asked} runs on a CPU and in BFloat16 only; set it to None")
    return [_row(spec, dtype, asked, budget)]


Choice = TypeVar("Choice", bound=StrEnum)


def _one_of(kind: type[Choice], option: str, value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{option} {value} is not known; there are {', '.join(kind)}") from None


def _row(spec: ModelSpec, dtype: str, quantization: Quantization, budget: Budget) -> Row:
    itemsize = _ITEMSIZES[dtype]
    figures = memory.figures(spec, STORAGES[quantization], memory.HABITS[budget.kind], itemsize=itemsize)
    uncoded = memory.figures(spec, STORAGES[quantization], memory.UNCODED, itemsize=itemsize)
    return Row(
        precision=dtype,
        quantization=quantization,
        kv_token_bytes=figures.kv_token,
        num_sequences=(num := largest_batch(figures, budget)),
        footprint=figures.footprint(demand(figures, budget, max(num, 1))),
        uncoded_bytes=uncoded.weights - figures.weights if budget.kind == "cpu" else 0,
    )


def largest_batch(figures: MemoryFigures, budget: Budget) -> int:
    """Sequences of the whole context that fit beside everything else; at most `MOST_SEQUENCES`."""
    sizes = range(1, MOST_SEQUENCES + 1)
    return bisect_right(
        sizes, budget.memory_bytes, key=lambda num: figures.footprint(demand(figures, budget, num)).total
    )


def demand(figures: MemoryFigures, budget: Budget, num_sequences: int) -> Demand:
    """Arguments of an engine that runs so many sequences, each of the whole context, at once."""
    blocks = -(-budget.context // budget.block_size)
    return Demand(
        # Whole mebibytes, as a resource states them.
        kv_cache_bytes=mebibytes(num_sequences * blocks * budget.block_size * figures.kv_token) << 20,
        block_size=budget.block_size,
        max_model_len=budget.context,
        max_batched_tokens=max(budget.max_batched_tokens, num_sequences),
        max_sequences=num_sequences,
    )


def show(found: Sequence[Row], model: Path, budget: Budget, console: Console) -> None:
    """The table, and what to write into a resource."""
    first = found[0]
    table = Table(
        title=f"{model.resolve().name} in {first.precision}, {first.kv_token_bytes / 1024:.1f} KiB of KV a token\n"
        f"The largest batch of {budget.context:,} tokens each; MiB, of which there are {budget.memory_bytes >> 20:,}",
        box=box.SIMPLE,
        title_justify="left",
    )
    table.add_column("quantization")
    for column in ("weights", "KV cache", "step", "graphs", "processes", "batch"):
        table.add_column(column, justify="right")
    for row in found:
        need = row.footprint
        table.add_row(
            row.quantization.value,
            f"{mebibytes(need.weights):,}",
            f"{mebibytes(need.kv_cache):,}" if row.num_sequences else "–",
            f"{mebibytes(need.step):,}",
            f"{mebibytes(need.graphs):,}" if need.graphs else "–",
            f"{mebibytes(need.processes):,}",
            _batch(row),
        )
    console.print(table)
    for line in advice(found, budget):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def advice(found: Sequence[Row], budget: Budget) -> Iterator[str]:
    """Sentences under the table: about the first row that fits, which rounds the least."""
    best = next((row for row in found if row.num_sequences), None)
    if best is None:
        least = min(mebibytes(row.footprint.total) for row in found)
        yield f"Not one sequence fits: {least:,} MiB are needed and there are {budget.memory_bytes >> 20:,}."
        return
    need = best.footprint
    settings = [
        f"engine.batching.maxSequences {best.num_sequences}",
        f"engine.batching.maxBatchedTokens {max(budget.max_batched_tokens, best.num_sequences)}",
        f"engine.kvCache.memoryMebibytes {mebibytes(need.kv_cache)}",
        f"model.maxModelLength {budget.context}",
    ]
    if budget.kind == "cpu":
        settings.insert(0, f"resources.memoryMebibytes {mebibytes(need.total)}")
    yield f"For {_batch(best)} with quantization {best.quantization}: {', '.join(settings)}."
    if best.uncoded_bytes:
        yield f"On a processor without AVX-512 its weights take {mebibytes(best.uncoded_bytes):,} MiB more."
    if budget.kind == "cuda":
        yield "What processes (context, workspaces) and each graph take on a GPU are allowances and not measured yet."


def _batch(row: Row) -> str:
    if not row.num_sequences:
        return "does not fit"
    return f"{row.num_sequences:,}" + (" or more" if row.num_sequences == MOST_SEQUENCES else "")
