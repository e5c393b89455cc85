"""From a model directory to a runner."""

from collections.abc import Callable
from pathlib import Path

import torch

from capstan_api.engine_args import Precision
from capstan_engine import kernels, quant
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import KvLayout
from capstan_engine.models.config_file import Config
from capstan_engine.models.decoder import load_decoder, tensors
from capstan_engine.models.families import read_spec
from capstan_engine.runner import kv_cache, memory
from capstan_engine.runner.machine import available_memory
from capstan_engine.runner.runner import Runner

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_runner(
    model_dir: Path,
    *,
    precision: Precision,
    kv_cache_bytes: int,
    block_size: int,
    max_model_len: int,
    num_threads: int,
    max_batched_tokens: int = 0,
    max_sequences: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Runner:
    """Check the checkpoint and the memory, allocate the KV cache, load the weights.

    `max_batched_tokens` and `max_sequences` bound a step, and `progress` gets the bytes of weights that are read and
    those of all. Sets torch's number of threads for the process. Raises `ModelError`, `UnsupportedModel`,
    `ConfigurationError`, `Infeasible`.
    """
    torch.set_num_threads(num_threads)
    spec = read_spec(model_dir)
    quantization = quant.choose(Config.read(model_dir / "config.json").fields)
    if max_model_len > spec.max_positions:
        raise ConfigurationError(
            f"max_model_len: {max_model_len} exceeds the {spec.max_positions} positions of the model in {model_dir}; "
            f"set it to {spec.max_positions} or less"
        )
    dtype = _DTYPES[spec.dtype if precision is Precision.AUTO else precision.value.lower()]
    backend = kernels.choose("reference", device)
    num_blocks = kv_cache.num_blocks(spec, block_size, dtype, kv_cache_bytes, max_model_len)
    block_bytes = kv_cache.bytes_per_block(spec, block_size, dtype)

    def footprint(kv_cache_bytes: int) -> memory.Footprint:
        return memory.footprint(
            spec,
            tensors(spec, quantization),
            itemsize=dtype.itemsize,
            kv_cache_bytes=kv_cache_bytes,
            max_model_len=max_model_len,
            max_batched_tokens=max_batched_tokens,
            max_sequences=max_sequences,
        )

    smallest = -(-max_model_len // block_size) * block_bytes
    memory.check(footprint, num_blocks * block_bytes, available_memory(), smallest_kv_cache_bytes=smallest)
    layout = KvLayout(num_blocks, spec.num_kv_heads, block_size)
    with torch.inference_mode():
        decoder = load_decoder(
            model_dir,
            spec,
            quantization,
            backend,
            dtype=dtype,
            num_positions=max_model_len,
            device=device,
            progress=progress,
        )
        cache = kv_cache.KvCache(spec, layout, dtype, device)
    return Runner(decoder, cache, backend, dtype=dtype, device=device)
