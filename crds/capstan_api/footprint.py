"""What an engine needs of memory: one law for the engine before it allocates, and for whoever judges before one starts.

Knows neither checkpoints nor tensors: a model is a few numbers (`MemoryFigures`) that an engine derives from it and
tells at `GET /admin/figures`. The surprising idea: a need is linear in what a resource declares, so the numbers of one
engine judge every other envelope of its model, also those that no engine ever ran with.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

KV_CACHE_SHARE: Final = 0.9
"""Of what everything else leaves, what a KV cache takes that was given no size."""


@dataclass(frozen=True)
class Demand:
    """Those arguments of an engine that take memory."""

    kv_cache_bytes: int
    block_size: int
    max_model_len: int
    max_batched_tokens: int
    max_sequences: int


@dataclass(frozen=True)
class Footprint:
    """Bytes, by what they are for."""

    weights: int
    kv_cache: int
    step: int
    """The largest step, or the loading of the largest fused weight, whichever is more."""
    graphs: int
    """Steps that are recorded for the device to repeat."""
    processes: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.step + self.graphs + self.processes


class MemoryFigures(BaseModel):
    """One model in one precision, as engines hold it. Body of `GET /admin/figures`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: int = Field(ge=0, description="Bytes of the weights as they are held.")
    position: int = Field(ge=0, description="Bytes of tables for each position that a sequence may have.")
    kv_token: int = Field(ge=1, description="Bytes of keys and values of one token in all layers.")
    kv_copied: int = Field(ge=0, description="A step copies one part in so many of the KV cache; 0: none of it.")
    step_token: int = Field(ge=0, description="Bytes of a step for each token in it.")
    step_position: int = Field(ge=0, description="Bytes of a step for each position that a sequence may have.")
    step_sequence: int = Field(ge=0, description="Bytes of a step for each sequence in it.")
    graph_sequence: int = Field(
        default=0, ge=0, description="Bytes of recorded steps for each sequence in the largest of them."
    )
    loading: int = Field(ge=0, description="Bytes that loading takes for a moment, beside what stays.")
    processes: int = Field(ge=0, description="Bytes of the processes with no model.")
    max_positions: int = Field(ge=1, description="Longest sequence that the model is meant for, in tokens.")
    on_device: bool = Field(
        default=False, description="Of a device's memory, which bounds of a container do not touch."
    )

    def num_blocks(self, demand: Demand) -> int:
        """Whole blocks of the KV cache."""
        return demand.kv_cache_bytes // (self.kv_token * demand.block_size)

    def smallest_kv_cache_bytes(self, demand: Demand) -> int:
        """What one request of the greatest length takes, in whole blocks."""
        return -(-demand.max_model_len // demand.block_size) * demand.block_size * self.kv_token

    def kv_cache_bytes(self, demand: Demand, available_bytes: int) -> int:
        """What a cache takes that was given no size, in whole blocks: nine tenths of what everything else leaves, and
        one request of the greatest length at least, even where there is no room for it.

        The size in `demand` does not matter.
        """
        block = self.kv_token * demand.block_size
        fitting = bisect_right(
            range(1, max(0, available_bytes) // block + 1),
            available_bytes,
            key=lambda num: self.footprint(replace(demand, kv_cache_bytes=num * block)).total,
        )
        return max(int(fitting * KV_CACHE_SHARE) * block, self.smallest_kv_cache_bytes(demand))

    def footprint(self, demand: Demand) -> Footprint:
        step = (
            demand.max_batched_tokens * self.step_token
            + demand.max_model_len * self.step_position
            + demand.max_sequences * self.step_sequence
            + (demand.kv_cache_bytes // self.kv_copied if self.kv_copied else 0)
        )
        return Footprint(
            weights=self.weights + demand.max_model_len * self.position,
            kv_cache=demand.kv_cache_bytes,
            step=max(step, self.loading),
            graphs=demand.max_sequences * self.graph_sequence,
            processes=self.processes,
        )

    def shortfall(self, demand: Demand, available_bytes: int) -> str | None:
        """Why the memory that there is does not suffice, and the nearest resource that would do; None when it does."""
        need = self.footprint(demand)
        if need.total <= available_bytes:
            return None
        enough = mebibytes(need.total)
        larger = "take a device with" if self.on_device else "set resources.memoryMebibytes to"
        remedies = [f"{larger} at least {enough}"]
        # A cache that does not hold one request of the greatest length is no remedy.
        sizes = range(mebibytes(self.smallest_kv_cache_bytes(demand)), mebibytes(demand.kv_cache_bytes))
        fitting = bisect_right(
            sizes, available_bytes, key=lambda mib: self.footprint(replace(demand, kv_cache_bytes=mib << 20)).total
        )
        if fitting:
            remedies.append(f"or set engine.kvCache.memoryMebibytes to at most {sizes[fitting - 1]}")
        return (
            f"{enough} MiB of memory are needed ({mebibytes(need.weights)} weights, "
            f"{mebibytes(need.kv_cache)} KV cache, {mebibytes(need.step)} for a step, "
            f"{f'{mebibytes(need.graphs)} for graphs, ' if need.graphs else ''}"
            f"{mebibytes(need.processes)} for the processes) and there are {available_bytes >> 20}; "
            f"{' '.join(remedies)}"
        )


def mebibytes(num_bytes: int) -> int:
    """Whole mebibytes, rounded up."""
    return -(-num_bytes >> 20)
