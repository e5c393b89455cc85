"""From a model directory to a runner."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from capstan_api.engine_args import Precision, Quantization
from capstan_api.footprint import Demand, Footprint, MemoryFigures, mebibytes
from capstan_engine import kernels
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import Kernels, KvLayout
from capstan_engine.kernels.native import coding
from capstan_engine.models.config_file import Config
from capstan_engine.models.decoder import Decoder
from capstan_engine.models.families import read_spec
from capstan_engine.models.loading import load_decoder
from capstan_engine.models.spec import ModelSpec
from capstan_engine.quant.choose import choose
from capstan_engine.quant.format import Format
from capstan_engine.quant.storage import STORAGES
from capstan_engine.runner import kv_cache, machine, memory, room
from capstan_engine.runner.device import available_memory
from capstan_engine.runner.graphs import CudaRecorder, Graphs, Recorder
from capstan_engine.runner.runner import Runner

meters: dict[str, Callable[[], room.Meter]] = {"cuda": room.CudaMeter}
"""By the kind of device, where memory is our own and can be measured."""
recorders: dict[str, Callable[[], Recorder]] = {"cuda": CudaRecorder}
"""By the kind of device, where it can repeat steps by itself."""
_log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_runner(
    model_dir: Path,
    *,
    precision: Precision,
    kv_cache_bytes: int | None,
    block_size: int,
    max_model_len: int,
    num_threads: int | None,
    quantization: Quantization = Quantization.NONE,
    max_batched_tokens: int = 0,
    max_sequences: int = 0,
    memory_bytes: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Runner:
    """Check the checkpoint and the memory, load the weights, allocate the KV cache.

    `max_batched_tokens` and `max_sequences` bound a step, and `progress` gets the bytes of weights that are read and
    those of all. Without `kv_cache_bytes` the cache gets what the rest leaves: on a CPU of `memory_bytes`, on a GPU of
    what is free there. Sets torch's number of threads for the process, `num_threads` at most. Raises `ModelError`,
    `UnsupportedModel`, `ConfigurationError`, `Infeasible`.
    """
    torch.set_num_threads(machine.num_threads(num_threads))
    machine.allocate_in_one_place()
    arguments = Demand(kv_cache_bytes or 0, block_size, max_model_len, max_batched_tokens, max_sequences)
    plan = _planned(
        model_dir,
        precision,
        quantization,
        device,
        arguments,
        is_sized=kv_cache_bytes is not None,
        memory_bytes=memory_bytes,
    )

    def read_more(done: int, total: int) -> None:
        # What was read before is packed, and its memory free: kept, it would lie beside what is read next.
        machine.give_back_freed_memory()
        progress(done, total)

    need = plan.figures.footprint(plan.demand)
    with torch.inference_mode():
        decoder = load_decoder(
            model_dir,
            plan.spec,
            plan.form,
            plan.backend,
            dtype=plan.dtype,
            num_positions=max_model_len,
            device=device,
            spare_bytes=need.kv_cache + need.step - plan.figures.loading,
            progress=read_more,
        )
        if plan.meter is not None:
            plan = plan._replace(demand=_measured(plan, decoder, plan.meter))
        cache = plan.cache(kv_cache.num_blocks(plan.figures, plan.demand))
        graphs = _graphs(plan, decoder, cache)
    _report(plan.figures.footprint(plan.demand), cache.layout)
    return Runner(decoder, cache, plan.backend, plan.figures, dtype=plan.dtype, graphs=graphs)


class _Plan(NamedTuple):
    """What is to be made of a checkpoint, before a weight is read."""

    spec: ModelSpec
    form: Format
    dtype: torch.dtype
    device: str
    backend: Kernels
    figures: MemoryFigures
    demand: Demand
    """With the least cache there may be, where its size is measured."""
    meter: room.Meter | None
    """That measures it."""

    def cache(self, num_blocks: int) -> kv_cache.KvCache:
        layout = KvLayout(num_blocks, self.spec.num_kv_heads, self.demand.block_size)
        return kv_cache.KvCache(self.spec, layout, self.dtype, self.device)


def _planned(
    model_dir: Path,
    precision: Precision,
    quantization: Quantization,
    device: str,
    demand: Demand,
    *,
    is_sized: bool,
    memory_bytes: int | None,
) -> _Plan:
    """The plan, if configuration and memory allow it; without `is_sized` it says how large the cache is."""
    spec = read_spec(model_dir)
    form = choose(Config.read(model_dir / "config.json").fields, quantization)
    if demand.max_model_len > spec.max_positions:
        raise ConfigurationError(
            f"max_model_len: {demand.max_model_len} exceeds the {spec.max_positions} positions of the model in "
            f"{model_dir}; set it to {spec.max_positions} or less"
        )
    dtype = _DTYPES[spec.dtype if precision is Precision.AUTO else precision.value.lower()]
    if quantization is not Quantization.NONE and (device != "cpu" or dtype is not torch.bfloat16):
        raise ConfigurationError(
            f"quantization: {quantization} computes in bfloat16 on a CPU, not in {str(dtype).removeprefix('torch.')} "
            f"on {device}; set precision to BFloat16, or quantization to None"
        )
    backend = kernels.choose(device)
    habits = memory.UNCODED if device == "cpu" and not coding.is_worthwhile() else memory.HABITS[device]
    figures = memory.figures(spec, STORAGES[quantization], habits, itemsize=dtype.itemsize)
    available_bytes, meter = available_memory(device), None
    if not is_sized:
        meter = meters[device]() if device in meters else None
        least = figures.smallest_kv_cache_bytes(demand)
        room_bytes = room.of_figures(figures, demand, memory_bytes, available_bytes) if meter is None else least
        demand = replace(demand, kv_cache_bytes=room_bytes)
    kv_cache.num_blocks(figures, demand)
    memory.check(figures, demand, available_bytes)
    return _Plan(spec, form, dtype, device, backend, figures, demand, meter)


def _measured(plan: _Plan, decoder: Decoder, meter: room.Meter) -> Demand:
    """The demand with a cache of what the device has left after its largest step."""
    demand = plan.demand
    length = min(demand.max_model_len, -(-demand.max_batched_tokens // max(1, demand.max_sequences)))
    small = plan.cache(-(-length // demand.block_size))
    trial = Runner(decoder, small, plan.backend, plan.figures, dtype=plan.dtype, graphs=None)
    size = room.measured(plan.figures, demand, meter, partial(trial.try_step, demand.max_sequences, length))
    return replace(demand, kv_cache_bytes=size)


def _graphs(plan: _Plan, decoder: Decoder, cache: kv_cache.KvCache) -> Graphs | None:
    """What repeats decode steps, where device and kernels can."""
    recorder, backend, max_sequences = recorders.get(plan.device), plan.backend, plan.demand.max_sequences
    if recorder is None or not kernels.recordable(backend):
        return None
    return Graphs(
        backend,
        lambda inputs: decoder.logits(
            decoder.forward(inputs.known_ids(), inputs.positions, cache.layers, inputs.plans)
        ),
        recorder(),
        layout=cache.layout,
        windows=decoder.windows,
        max_sequences=max_sequences,
        max_context=plan.demand.max_model_len,
        out=torch.zeros(backend.round_up(max_sequences), plan.spec.vocab_size, dtype=plan.dtype, device=plan.device),
    )


def _report(need: Footprint, layout: KvLayout) -> None:
    """What the engine takes of memory from now on."""
    parts = {"weights": need.weights, "KV cache": need.kv_cache, "a step": need.step, "graphs": need.graphs}
    told = ", ".join(f"{mebibytes(num_bytes)} MiB {name}" for name, num_bytes in parts.items() if num_bytes)
    _log.info("memory: %s; %d blocks of %d tokens", told, layout.num_blocks, layout.block_size)
