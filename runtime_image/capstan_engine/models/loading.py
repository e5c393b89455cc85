"""From a checkpoint to a decoder: several of its parts at the same time, each read and packed.

The surprising idea: whoever reads waits for the disk and whoever packs for memory and processors, so that a few who do
one after the other keep both busy, without anything that hands weights from one to the other.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import call
from pathlib import Path
from threading import Lock
from typing import Any, Final

import torch

from capstan_engine.errors import ModelError
from capstan_engine.kernels import Kernels, LayerParts, Linear, QkNorm
from capstan_engine.models import shapes
from capstan_engine.models.decoder import Decoder
from capstan_engine.models.spec import ModelSpec
from capstan_engine.models.weights import Checkpoint
from capstan_engine.quant.format import Format
from capstan_engine.quant.storage import LinearSpec

_MOST_AT_ONCE: Final = 4
# Of a layer's bytes: half of them are its largest weight, as it was read, in float32, scaled, and in codes.
_SCRATCH: Final = 4


def load_decoder(
    model_dir: Path,
    spec: ModelSpec,
    quantization: Format,
    kernels: Kernels,
    *,
    dtype: torch.dtype,
    num_positions: int,
    device: str = "cpu",
    spare_bytes: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Decoder:
    """Read and check the whole checkpoint. Raises `ModelError` naming missing, unknown or misshapen tensors.

    `spare_bytes` of memory are nobody's until this is done, beside what one part alone takes: more are loaded at once
    if the scratch of layers fits there. `progress` is called with the bytes that are done and those of all: whenever
    more are done and another reading begins, and at the end.
    """
    checkpoint = Checkpoint(model_dir)
    expected = tensors(spec, quantization)
    checkpoint.check(expected, lambda name: _is_leftover(name, spec))
    total = sum(math.prod(shape) for shape in expected.values()) * dtype.itemsize
    done, told, one_at_a_time = 0, -1, Lock()

    def read(names: Sequence[str]) -> torch.Tensor:
        nonlocal done, told
        with one_at_a_time:
            if done > told:
                progress(done, total)
                told = done
        tensor = checkpoint.read(names, dtype, device)
        with one_at_a_time:
            done += tensor.nbytes
        return tensor

    def vector(name: str) -> torch.Tensor:
        return read([name])

    def linear(*specs: LinearSpec) -> Linear:
        return quantization.load(read, specs, kernels)

    @torch.inference_mode()
    def layer(index: int) -> LayerParts:
        q, k, v, output, gate, up, down = shapes.layer_linears(spec, index)
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        return LayerParts(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            window=spec.windows[index],
            eps=spec.norm_eps,
            input_norm=vector(f"{prefix}.input_layernorm.weight"),
            qkv=linear(q, k, v),
            qk_norm=QkNorm(vector(f"{attention}.q_norm.weight"), vector(f"{attention}.k_norm.weight"), spec.norm_eps)
            if spec.qk_norm
            else None,
            output=linear(output),
            post_attention_norm=vector(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=linear(gate, up),
            down=linear(down),
        )

    @torch.inference_mode()
    def ends() -> tuple[torch.Tensor, Linear]:
        embedding = read([shapes.EMBEDDING])
        _check_tie(checkpoint, spec, embedding)
        if spec.tie_word_embeddings:
            return embedding, quantization.head.pack(embedding, None, kernels)
        return embedding, quantization.head.load(read, [shapes.head(spec)], kernels)

    at_once = min(_MOST_AT_ONCE, 1 + spare_bytes // _scratch_bytes(spec, dtype))
    (embedding, head), *layers = _loaded([ends, *(partial(layer, i) for i in range(spec.num_layers))], at_once)
    decoder = Decoder(
        spec,
        kernels,
        embedding=embedding,
        layers=layers,
        norm=vector(shapes.NORM),
        head=head,
        num_positions=num_positions,
    )
    progress(done, total)
    return decoder


def tensors(spec: ModelSpec, quantization: Format) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a checkpoint of this model has."""
    expected = shapes.vectors_and_embedding(spec)
    if not spec.tie_word_embeddings:
        expected.update(quantization.head.tensors(shapes.head(spec)))
    for index in range(spec.num_layers):
        for linear in shapes.layer_linears(spec, index):
            expected.update(quantization.tensors(linear))
    return expected


def _loaded(parts: Sequence[Callable[[], Any]], at_once: int) -> list[Any]:
    """What the parts return. The first to fail keeps those from beginning that have not begun."""
    if at_once == 1:
        return list(map(call, parts))
    with ThreadPoolExecutor(at_once, "load") as pool:
        return list(pool.map(call, parts))


def _scratch_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """More than is ever held of a layer beside what is packed of it."""
    linears = shapes.layer_linears(spec, 0)
    return _SCRATCH * sum(linear.out_features * linear.in_features for linear in linears) * dtype.itemsize


def _check_tie(checkpoint: Checkpoint, spec: ModelSpec, embedding: torch.Tensor) -> None:
    """A second copy of a tied embedding must be one: to pass over a head of its own would serve another model."""
    name = f"{shapes.HEAD}.weight"
    if spec.tie_word_embeddings and name in checkpoint:
        same_shape = checkpoint.shape(name) == embedding.shape
        if not same_shape or not torch.equal(
            checkpoint.read([name], embedding.dtype, embedding.device.type), embedding
        ):
            raise ModelError(
                f"{name} differs from {shapes.EMBEDDING}, but config.json says tie_word_embeddings; "
                f"set it to false there, or remove the tensor"
            )


def _is_leftover(name: str, spec: ModelSpec) -> bool:
    """Rotary buffers that old checkpoints saved, and the second copy of a tied embedding."""
    return name.endswith("rotary_emb.inv_freq") or (spec.tie_word_embeddings and name == f"{shapes.HEAD}.weight")
