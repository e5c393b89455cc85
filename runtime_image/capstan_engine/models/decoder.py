"""The one decoder. It asks the spec for facts and never for the model's name.

Knows nothing of requests or sampling: flat tokens in, hidden states out, keys and values into a paged cache.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from capstan_engine.errors import ModelError
from capstan_engine.kernels import AttentionPlan, Kernels, LayerParts, Linear, QkNorm, fuses
from capstan_engine.models import shapes
from capstan_engine.models.layers import DecoderLayer
from capstan_engine.models.rope import rope_tables
from capstan_engine.models.spec import ModelSpec
from capstan_engine.models.weights import Checkpoint
from capstan_engine.quant.format import Format
from capstan_engine.quant.storage import LinearSpec


class Decoder:
    """A model with its weights, ready to compute."""

    def __init__(
        self,
        spec: ModelSpec,
        kernels: Kernels,
        *,
        embedding: torch.Tensor,
        layers: Sequence[LayerParts],
        norm: torch.Tensor,
        head: Linear,
        num_positions: int,
    ) -> None:
        """`embedding` is `[V, M]`; rotary tables are made for `num_positions`."""
        self.spec = spec
        self._kernels = kernels
        self._embedding = embedding
        self._layers = [DecoderLayer(kernels, parts) for parts in layers]
        self._fused = kernels.fuse_layers(layers) if fuses(kernels) else None
        self._norm = norm
        self._head = head
        self.num_positions = num_positions
        cos, sin = rope_tables(spec.rope, spec.head_dim, num_positions, embedding.dtype)
        self._cos, self._sin = cos.to(embedding.device), sin.to(embedding.device)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct sliding windows of the layers; None is full attention."""
        return tuple(dict.fromkeys(self.spec.windows))

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: Sequence[torch.Tensor],
        plans: Mapping[int | None, AttentionPlan],
    ) -> torch.Tensor:
        """int64 `[T]` ids and positions to the last layer's residual stream `[T, M]`. `caches`: one per layer."""
        x = functional.embedding(token_ids, self._embedding)
        if self._fused is not None and self._fused(x, self._cos, self._sin, caches, plans):
            return x
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        delta = None
        for layer, cache in zip(self._layers, caches, strict=True):
            delta = layer.forward(x, delta, cos, sin, cache, plans[layer.window])
        return x if delta is None else x.add_(delta)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Some rows of the residual stream, `[n, M] -> [n, V]`."""
        return self._head(self._kernels.rms_norm(x, self._norm, self.spec.norm_eps))


def load_decoder(
    model_dir: Path,
    spec: ModelSpec,
    quantization: Format,
    kernels: Kernels,
    *,
    dtype: torch.dtype,
    num_positions: int,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Decoder:
    """Read and check the whole checkpoint. Raises `ModelError` naming missing, unknown or misshapen tensors.

    `progress` is called before each reading, and at the end, with the bytes that are done and those of all.
    """
    checkpoint = Checkpoint(model_dir)
    expected = tensors(spec, quantization)
    checkpoint.check(expected, lambda name: _is_leftover(name, spec))
    total = sum(math.prod(shape) for shape in expected.values()) * dtype.itemsize
    done = 0

    def read(names: Sequence[str]) -> torch.Tensor:
        nonlocal done
        progress(done, total)
        tensor = checkpoint.read(names, dtype, device)
        done += tensor.nbytes
        return tensor

    def vector(name: str) -> torch.Tensor:
        return read([name])

    def linear(*specs: LinearSpec) -> Linear:
        return quantization.load(read, specs, kernels)

    def layer(index: int) -> LayerParts:
        q, k, v, output, gate, up, down = shapes.layer_linears(spec, index)
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        # While this layer is read and packed, the disk works for the next.
        checkpoint.announce(name for name in expected if name.startswith(f"model.layers.{index + 1}."))
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

    embedding = read([shapes.EMBEDDING])
    _check_tie(checkpoint, spec, embedding)
    head = (
        quantization.head.pack(embedding, None, kernels)
        if spec.tie_word_embeddings
        else quantization.head.load(read, [shapes.head(spec)], kernels)
    )
    decoder = Decoder(
        spec,
        kernels,
        embedding=embedding,
        layers=[layer(index) for index in range(spec.num_layers)],
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
