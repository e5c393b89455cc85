"""What an engine needs of memory, and the refusal when there is less: decided before the first weight is read.

Pure: numbers in, numbers out. Weights and KV cache are exact, they are what will be allocated. A step's own memory is
an upper bound read off the decoder, and the processes' own is measured. The surprising idea: a refusal
names the nearest configuration that would fit, in the resource's fields, because that is what whoever reads it sets.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from capstan_engine.errors import Infeasible
from capstan_engine.models.spec import ModelSpec

PROCESSES_BYTES: Final = 480 << 20
"""Anonymous memory of front end and core with their libraries and no model; 430 MiB were measured."""
_SCORED_QUERIES: Final = 64
"""Queries of one attention product in prefill."""


@dataclass(frozen=True)
class Footprint:
    """Bytes, by what they are for."""

    weights: int
    kv_cache: int
    step: int
    """The largest step, or the loading of the largest fused weight, whichever is more."""
    processes: int = PROCESSES_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.step + self.processes


def footprint(
    spec: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    itemsize: int,
    kv_cache_bytes: int,
    max_model_len: int,
    max_batched_tokens: int,
    max_sequences: int,
) -> Footprint:
    """What an engine with these limits needs. `shapes` are the checkpoint's tensors, `itemsize` bytes per number."""
    hidden, inner, vocab = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    heads_width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    parameters = sum(math.prod(shape) for shape in shapes.values())
    # A packed weight cannot be read back, so a tied embedding exists twice; then sine and cosine of every position.
    parameters += vocab * hidden * spec.tie_word_embeddings + 2 * max_model_len * spec.head_dim
    tokens = max_batched_tokens
    layer = tokens * (4 * hidden + max(2 * heads_width, 3 * inner))
    scores = 2 * spec.num_heads * _SCORED_QUERIES * max_model_len
    # The cache of one layer is gathered for the sequences that decode, padded to equal lengths.
    gathered = kv_cache_bytes // spec.num_layers
    # Logits, and float32 copies of them that are scaled, sorted and summed.
    logits = max_sequences * vocab * (itemsize + 4 * 4)
    step = (layer + scores) * itemsize + gathered + logits
    # Read, concatenated and packed: the largest group is held three times for a moment.
    loading = 2 * max(2 * inner * hidden, heads_width * hidden, vocab * hidden) * itemsize
    return Footprint(weights=parameters * itemsize, kv_cache=kv_cache_bytes, step=max(step, loading))


def check(
    needed: Callable[[int], Footprint], kv_cache_bytes: int, available_bytes: int, *, smallest_kv_cache_bytes: int
) -> None:
    """Raises `Infeasible` when what is `needed` with a cache of `kv_cache_bytes` exceeds what there is.

    `smallest_kv_cache_bytes` holds one request of the greatest length: a smaller cache is no remedy.
    """
    need = needed(kv_cache_bytes)
    if need.total <= available_bytes:
        return
    remedies = [f"set resources.memoryMebibytes to at least {_up(need.total)}"]
    sizes = range(_up(smallest_kv_cache_bytes), _up(kv_cache_bytes))
    fitting = bisect_right(sizes, available_bytes, key=lambda mebibytes: needed(mebibytes << 20).total)
    if fitting:
        remedies.append(f"or engine.kvCache.memoryMebibytes to at most {sizes[fitting - 1]}")
    raise Infeasible(
        f"infeasible: {_up(need.total)} MiB of memory are needed ({_up(need.weights)} weights, "
        f"{_up(need.kv_cache)} KV cache, {_up(need.step)} for a step, {_up(need.processes)} for the processes) "
        f"and there are {available_bytes >> 20}; {' '.join(remedies)}"
    )


def _up(num_bytes: int) -> int:
    """Whole mebibytes, rounded up."""
    return -(-num_bytes >> 20)
