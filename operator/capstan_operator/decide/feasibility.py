"""Whether what a resource asks for can be had at all, judged by what engines of the same model have told before.

Knows neither resources nor engines as such: it is given a spec, the model's memory figures and its learnt pace, and
answers with sentences that name the nearest spec that could be met. The surprising idea: memory is certain, because the
engine will refuse by the very same law; time never is, because it was learnt under somebody else's load.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from capstan_api.footprint import Demand, MemoryFigures, mebibytes
from capstan_api.model import ModelSource
from capstan_api.spec import InferenceDeploymentSpec, Objective
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.seen.signals import Lengths
from capstan_operator.decide.values import Value

TOO_SLOW = 1.05
"""Of the time alone over its threshold: what the model of a step may be off, before it says that it cannot be met."""
# Of the predicted time of a request alone, as a share: twice its standard error may not exceed what TOO_SLOW forgives.
_LARGEST_ERROR = TOO_SLOW - 1
# Room for what the model of a step does not know, and for company.
_ROOM = 1.2
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Told(Value):
    """What an engine has told of its model's memory. `of` is the `model_key` of the spec that it ran with."""

    of: str
    figures: MemoryFigures


class Pace(Value):
    """How fast an engine was, and with which requests."""

    model: EngineModel = EngineModel()
    lengths: Lengths = Lengths()

    @property
    def is_known(self) -> bool:
        """A request takes many steps, and how far single ones are off averages out: on a busy machine they are far off,
        and more of them have to be seen.
        """
        if not (self.model.is_usable and self.lengths.is_known):
            return False
        return 2 * self.model.error / math.sqrt(self.model.num_samples) <= _LARGEST_ERROR

    @property
    def token_s(self) -> float:
        """Seconds per output token of one mean request that has the engine for itself."""
        return self.model.step_seconds(0, 1, self.lengths.context)

    def first_token_s(self, max_batched_tokens: int) -> float:
        """Seconds from arrival to the first token of such a request, in steps of so many tokens."""
        computed = self.lengths.computed_prompt
        pairs = computed * (self.lengths.prompt - computed / 2)
        steps = -(-computed // max_batched_tokens)
        return self.model.step_seconds(computed, 0, 0, pairs) + (steps - 1) * self.model.coefficients[0]


class Doubt(NamedTuple):
    """Why a spec cannot be met, and what could. `is_certain` when an engine would refuse to start."""

    field: str
    sentence: str
    is_certain: bool = False

    def __str__(self) -> str:
        return f"{self.field}: {self.sentence}"


def model_key(spec: InferenceDeploymentSpec) -> str:
    """Equal for specs whose engines hold the same numbers in memory."""
    held = spec.variant.model_dump_json(exclude={"name", "resources", "cost_per_hour", "step_time"})
    return hashlib.sha256(f"{spec.model.source.model_dump_json()}\n{held}".encode()).hexdigest()[:16]


def have_one_pace(a: InferenceDeploymentSpec, b: InferenceDeploymentSpec) -> bool:
    """Whether engines of the two specs take the same time for the same step."""
    return (
        model_key(a) == model_key(b)
        and a.variant.resources.cpu_millicores == b.variant.resources.cpu_millicores
        and a.scheduling == b.scheduling
    )


def doubts(spec: InferenceDeploymentSpec, figures: MemoryFigures | None, pace: Pace) -> tuple[Doubt, ...]:
    """Everything that speaks against the spec."""
    found = list(_memory(spec, figures)) if figures is not None else []
    return (*found, *(too_slow(spec, pace, TOO_SLOW) if pace.is_known else ()))


def too_slow(spec: InferenceDeploymentSpec, pace: Pace, ratio: float) -> Iterator[Doubt]:
    """Thresholds that one request alone would miss: its time is more than `ratio` of them."""
    for slo in spec.slos:
        if slo.tpot and (token_ms := pace.token_s * 1000) > ratio * slo.tpot.threshold_milliseconds:
            alone = f"one request alone takes {token_ms:.0f} ms per token"
            yield _missed(f"spec.slos[{slo.name}].tpot", slo.tpot, token_ms, alone)
        first_ms = pace.first_token_s(spec.engine.batching.max_batched_tokens) * 1000
        if slo.ttft and first_ms > ratio * slo.ttft.threshold_milliseconds:
            alone = f"a prompt of {pace.lengths.prompt:.0f} tokens takes {first_ms:.0f} ms with nobody before it"
            yield _missed(f"spec.slos[{slo.name}].ttft", slo.ttft, first_ms, alone)


def _missed(field: str, asked: Objective, alone_ms: float, alone: str) -> Doubt:
    nearest = f"{math.ceil(_ROOM * alone_ms)} could be met, or a faster variant is needed"
    return Doubt(f"{field}.thresholdMilliseconds", f"{asked.threshold_milliseconds} is too short: {alone}; {nearest}")


def _memory(spec: InferenceDeploymentSpec, figures: MemoryFigures) -> Iterator[Doubt]:
    batching, cache, length = spec.engine.batching, spec.engine.kv_cache, spec.model.max_model_length
    available_bytes, is_sized = spec.variant.resources.memory_mebibytes << 20, cache.memory_mebibytes is not None
    demand = Demand(
        kv_cache_bytes=(cache.memory_mebibytes or 0) << 20,
        block_size=cache.block_size,
        max_model_len=length,
        max_batched_tokens=batching.max_batched_tokens,
        max_sequences=batching.max_sequences,
    )
    # Figures of a source that can change under its address are only a good guess.
    certain = _is_pinned(spec.model.source)
    if length > figures.max_positions:
        yield Doubt(
            "spec.model.maxModelLength",
            f"{length} exceeds the positions of the model; {figures.max_positions} is the most",
            certain,
        )
        # What is said of memory should hold for what is asked for next.
        length = figures.max_positions
        demand = replace(demand, max_model_len=length)
    if not is_sized:
        # How much a device has nobody knows here.
        room = 0 if figures.on_device else available_bytes
        demand = replace(demand, kv_cache_bytes=figures.kv_cache_bytes(demand, room))
    slots = figures.num_blocks(demand) * cache.block_size
    if slots < length:
        smallest = mebibytes(figures.smallest_kv_cache_bytes(demand))
        shorter = f"maxModelLength {slots} fits, or " if slots >= cache.block_size else ""
        yield Doubt(
            "spec.model.maxModelLength",
            f"one request of {length} tokens does not fit into the {slots} slots of the KV cache; "
            f"{shorter}engine.kvCache.memoryMebibytes of {smallest}",
            certain,
        )
    elif batching.max_sequences > figures.num_blocks(demand) and (is_sized or not figures.on_device):
        yield Doubt(
            "spec.engine.batching.maxSequences",
            f"{batching.max_sequences} never run at the same time: the KV cache has {figures.num_blocks(demand)} "
            "blocks, and each needs one at least",
        )
    shortfall = None if figures.on_device else figures.shortfall(demand, available_bytes)
    if shortfall is not None:
        yield Doubt(f"spec.variants[{spec.variant.name}].resources", shortfall, certain)


def _is_pinned(source: ModelSource) -> bool:
    """Whether the same address always gives the same files."""
    return (
        source.digest is not None
        or source.uri.startswith("bundled://")
        or "@sha256:" in source.uri
        or _COMMIT.fullmatch(source.revision or "") is not None
    )
