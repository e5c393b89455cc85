"""From a model directory to a runner."""

from collections.abc import Callable
from pathlib import Path

import torch

from capstan_api.engine_args import Precision, Quantization
from capstan_api.footprint import Demand
from capstan_engine import kernels
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import KvLayout
from capstan_engine.kernels.native import coding
from capstan_engine.models.config_file import Config
from capstan_engine.models.decoder import load_decoder
from capstan_engine.models.families import read_spec
from capstan_engine.quant.choose import choose
from capstan_engine.quant.storage import STORAGES
from capstan_engine.runner import kv_cache, machine, memory
from capstan_engine.runner.device import available_memory
from capstan_engine.runner.graphs import CudaRecorder, Graphs, Recorder
from capstan_engine.runner.runner import Runner

recorders: dict[str, Callable[[], Recorder]] = {"cuda": CudaRecorder}
"""By the kind of device, where it can repeat steps by itself."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_runner(
    model_dir: Path,
    *,
    precision: Precision,
    kv_cache_bytes: int,
    block_size: int,
    max_model_len: int,
    num_threads: int | None,
    quantization: Quantization = Quantization.NONE,
    max_batched_tokens: int = 0,
    max_sequences: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Runner:
    """Check the checkpoint and the memory, allocate the KV cache, load the weights.

    `max_batched_tokens` and `max_sequences` bound a step, and `progress` gets the bytes of weights that are read and
    those of all. Sets torch's number of threads for the process, `num_threads` at most. Raises `ModelError`,
    `UnsupportedModel`, `ConfigurationError`, `Infeasible`.
    """
    torch.set_num_threads(machine.num_threads(num_threads))
    spec = read_spec(model_dir)
    form = choose(Config.read(model_dir / "config.json").fields, quantization)
    if max_model_len > spec.max_positions:
        raise ConfigurationError(
            f"max_model_len: {max_model_len} exceeds the {spec.max_positions} positions of the model in {model_dir}; "
            f"set it to {spec.max_positions} or less"
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
    demand = Demand(kv_cache_bytes, block_size, max_model_len, max_batched_tokens, max_sequences)
    num_blocks = kv_cache.num_blocks(figures, demand)
    memory.check(figures, demand, available_memory(device))
    layout = KvLayout(num_blocks, spec.num_kv_heads, block_size)

    def read_more(done: int, total: int) -> None:
        # What was read before is packed, and its memory free: kept, it would lie beside what is read next.
        machine.give_back_freed_memory()
        progress(done, total)

    with torch.inference_mode():
        decoder = load_decoder(
            model_dir,
            spec,
            form,
            backend,
            dtype=dtype,
            num_positions=max_model_len,
            device=device,
            progress=read_more,
        )
        cache = kv_cache.KvCache(spec, layout, dtype, device)
        recorder = recorders.get(device)
        graphs = None
        if recorder is not None and kernels.recordable(backend):
            graphs = Graphs(
                backend,
                lambda inputs: decoder.logits(
                    decoder.forward(inputs.known_ids(), inputs.positions, cache.layers, inputs.plans)
                ),
                recorder(),
                layout=layout,
                windows=decoder.windows,
                max_sequences=max_sequences,
                max_context=max_model_len,
                out=torch.zeros(backend.round_up(max_sequences), spec.vocab_size, dtype=dtype, device=device),
            )
    return Runner(decoder, cache, backend, figures, dtype=dtype, graphs=graphs)
