"""What one model takes of memory, as the numbers by which `capstan_api.footprint` judges every envelope of it.

Pure: numbers in, numbers out. Weights and KV cache are exact, they are what will be allocated. A step's own memory is
an upper bound read off the decoder, and the processes' own is measured.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from capstan_api.footprint import Demand, MemoryFigures
from capstan_engine.errors import Infeasible
from capstan_engine.models import shapes
from capstan_engine.models.spec import ModelSpec
from capstan_engine.pieces import most_pieces
from capstan_engine.quant.storage import Storage

_GRAPH: Final = 8 << 20
"""Bytes that the driver keeps of a graph, one for each eight sequences: an allowance, not measured yet."""
_SCORED_QUERIES: Final = 64
"""Queries of one attention product in prefill."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What the kernels of one kind of device do with memory."""

    packs: bool
    """A weight is held in a layout of its own, which cannot be read back: a tied embedding exists twice."""
    gathers: bool
    """Attention copies one layer's cache for the sequences that decode, and writes its scores down."""
    processes: int
    """Bytes with libraries and no model."""
    on_device: bool = False
    """The memory is a device's own and not the container's."""
    codes: bool = False
    """Weights of 16 bits are held in 12."""
    records: bool = False
    """Decode steps are recorded, and what they compute in stays allocated."""


HABITS: Final = {
    # 430 MiB were measured of anonymous memory in front end and core.
    "cpu": Habits(packs=True, gathers=True, processes=480 << 20, codes=True),
    # On the device: an allowance for the context and the libraries' workspaces. Not measured yet.
    "cuda": Habits(packs=False, gathers=False, processes=768 << 20, on_device=True, records=True),
}
"""By the kind of device that kernels are chosen for."""
UNCODED: Final = replace(HABITS["cpu"], codes=False)
"""Of a CPU that has no AVX-512, or where torch computes alone."""


def figures(spec: ModelSpec, storage: Storage, habits: Habits, *, itemsize: int) -> MemoryFigures:
    """Of a model that computes with `itemsize` bytes per number and holds its linear layers as `storage` says."""
    hidden, inner, vocab = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    heads_width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    linears = [linear for index in range(spec.num_layers) for linear in shapes.layer_linears(spec, index)]
    weights = sum(math.prod(shape) for shape in shapes.vectors_and_embedding(spec).values()) * itemsize
    weights += sum(storage.num_bytes(linear, itemsize, codes=habits.codes) for linear in linears)
    if habits.packs or not spec.tie_word_embeddings:
        weights += storage.num_bytes(shapes.head(spec), itemsize, is_head=True, codes=habits.codes)
    # Bytes of a token's input to the widest product, in integers with their scales; and what torch makes of it, and of
    # the product's output, where nothing is compiled.
    rounding = 3 * max(hidden, inner) if storage.bits else 0
    rounding += (6 * max(hidden, inner) + 4 * 2 * inner) if storage.rounds_activations else 0
    step_token = (4 * hidden + max(2 * heads_width, 3 * inner)) * itemsize + rounding
    # What attention over each piece of a context comes to, and its weight, before they are put together.
    pieces = 0 if habits.gathers else most_pieces(spec.max_positions) * spec.num_heads * (spec.head_dim + 1) * 4
    return MemoryFigures(
        weights=weights,
        # Sine and cosine.
        position=2 * spec.head_dim * itemsize,
        kv_token=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * itemsize,
        # Sequences that decode are gathered padded to equal lengths.
        kv_copied=spec.num_layers if habits.gathers else 0,
        step_token=step_token,
        step_position=2 * spec.num_heads * _SCORED_QUERIES * itemsize if habits.gathers else 0,
        # Logits, and float32 copies of them that are scaled, sorted and summed.
        step_sequence=vocab * (itemsize + 4 * 4) + pieces,
        # A decode step with sampling, and the logits it leaves behind.
        graph_sequence=step_token + pieces + 2 * vocab * itemsize + _GRAPH // 8 if habits.records else 0,
        # The largest group, read, is held beside what it is packed into, and so are the integers that it is rounded to.
        loading=2 * max(2 * inner * hidden, heads_width * hidden, vocab * hidden) * itemsize if habits.packs else 0,
        processes=habits.processes,
        max_positions=spec.max_positions,
        on_device=habits.on_device,
    )


def check(figures: MemoryFigures, demand: Demand, available_bytes: int) -> None:
    """Raises `Infeasible`, before the first weight is read, when what is demanded exceeds what there is."""
    shortfall = figures.shortfall(demand, available_bytes)
    if shortfall is not None:
        raise Infeasible(f"infeasible: {shortfall}")
