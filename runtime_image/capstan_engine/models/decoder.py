"""The one decoder. It asks the spec for facts and never for the model's name.

Knows nothing of requests or sampling: flat tokens in, hidden states out, keys and values into a paged cache.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from capstan_engine.kernels import AttentionPlan, Kernels, Linear
from capstan_engine.models.layers import DecoderLayer, QkNorm
from capstan_engine.models.rope import rope_tables
from capstan_engine.models.spec import ModelSpec
from capstan_engine.models.weights import Checkpoint
from capstan_engine.quant import Format, LinearSpec

_HEAD = "lm_head"
_EMBEDDING = "model.embed_tokens.weight"
_NORM = "model.norm.weight"


class Decoder:
    """A model with its weights, ready to compute."""

    def __init__(
        self,
        spec: ModelSpec,
        kernels: Kernels,
        *,
        embedding: torch.Tensor,
        layers: Sequence[DecoderLayer],
        norm: torch.Tensor,
        head: Linear,
        num_positions: int,
    ) -> None:
        """`embedding` is `[V, M]`; rotary tables are made for `num_positions`."""
        self.spec = spec
        self._kernels = kernels
        self._embedding = embedding
        self._layers = layers
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
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        for layer, cache in zip(self._layers, caches, strict=True):
            layer.forward(x, cos, sin, cache, plans[layer.window])
        return x

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

    `progress` is called after each tensor with the bytes that are done and those of all.
    """
    checkpoint = Checkpoint(model_dir)
    expected = tensors(spec, quantization)
    checkpoint.check(expected, lambda name: _is_leftover(name, spec))
    total = sum(math.prod(shape) for shape in expected.values()) * dtype.itemsize
    done = 0

    def read(name: str) -> torch.Tensor:
        nonlocal done
        tensor = checkpoint.read(name, dtype, device)
        done += tensor.nbytes
        progress(done, total)
        return tensor

    def linear(*specs: LinearSpec) -> Linear:
        return quantization.load(read, specs, kernels)

    def layer(index: int) -> DecoderLayer:
        q, k, v, output, gate, up, down = _linears(spec, index)
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        return DecoderLayer(
            kernels=kernels,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            eps=spec.norm_eps,
            window=spec.windows[index],
            input_norm=read(f"{prefix}.input_layernorm.weight"),
            qkv=linear(q, k, v),
            qk_norm=QkNorm(read(f"{attention}.q_norm.weight"), read(f"{attention}.k_norm.weight"))
            if spec.qk_norm
            else None,
            output=linear(output),
            post_attention_norm=read(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=linear(gate, up),
            down=linear(down),
        )

    embedding = read(_EMBEDDING)
    head = kernels.pack_linear(embedding, None) if spec.tie_word_embeddings else linear(_head(spec))
    return Decoder(
        spec,
        kernels,
        embedding=embedding,
        layers=[layer(index) for index in range(spec.num_layers)],
        norm=read(_NORM),
        head=head,
        num_positions=num_positions,
    )


def _linears(spec: ModelSpec, index: int) -> tuple[LinearSpec, ...]:
    """q, k, v, output, gate, up, down."""
    attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return (
        LinearSpec(f"{attention}.q_proj", queries, hidden, spec.qkv_bias),
        LinearSpec(f"{attention}.k_proj", keys, hidden, spec.qkv_bias),
        LinearSpec(f"{attention}.v_proj", keys, hidden, spec.qkv_bias),
        LinearSpec(f"{attention}.o_proj", hidden, queries, spec.output_bias),
        LinearSpec(f"{mlp}.gate_proj", inner, hidden, spec.mlp_bias),
        LinearSpec(f"{mlp}.up_proj", inner, hidden, spec.mlp_bias),
        LinearSpec(f"{mlp}.down_proj", hidden, inner, spec.mlp_bias),
    )


def _head(spec: ModelSpec) -> LinearSpec:
    return LinearSpec(_HEAD, spec.vocab_size, spec.hidden_size)


def tensors(spec: ModelSpec, quantization: Format) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a checkpoint of this model has."""
    shapes: dict[str, tuple[int, ...]] = {
        _EMBEDDING: (spec.vocab_size, spec.hidden_size),
        _NORM: (spec.hidden_size,),
    }
    if not spec.tie_word_embeddings:
        shapes.update(quantization.tensors(_head(spec)))
    for index in range(spec.num_layers):
        prefix = f"model.layers.{index}"
        shapes[f"{prefix}.input_layernorm.weight"] = (spec.hidden_size,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (spec.hidden_size,)
        if spec.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (spec.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (spec.head_dim,)
        for linear in _linears(spec, index):
            shapes.update(quantization.tensors(linear))
    return shapes


def _is_leftover(name: str, spec: ModelSpec) -> bool:
    """Rotary buffers that old checkpoints saved, and the second copy of a tied embedding."""
    return name.endswith("rotary_emb.inv_freq") or (spec.tie_word_embeddings and name == f"{_HEAD}.weight")
