"""All layers in one call are their parts one by one, to the last bit; and a model decodes the same tokens by it.

At every level of instructions that this processor has.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.engine_args import Precision, Quantization
from capstan_engine.block_table import block_table
from capstan_engine.kernels import KvLayout, LayerParts, QkNorm, Span, native
from capstan_engine.kernels.native import products
from capstan_engine.kernels.native.layers import FusedLayers
from capstan_engine.kernels.stage import HostStage
from capstan_engine.models.layers import DecoderLayer
from capstan_engine.quant.choose import choose
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.step import StepPlan
from compiled_kernels import BF16, EACH_LEVEL, random
from tiny_models import Case, load_runner, random_prompt, scheduled, write_checkpoint

pytestmark = EACH_LEVEL
HIDDEN, INNER, WIDTH = 128, 384, 32


def parts_of(
    quantization: Quantization,
    heads: tuple[int, int],
    *,
    norms: bool,
    bias: bool,
    window: int | None = None,
    seed: int = 0,
) -> LayerParts:
    num_heads, num_kv_heads = heads
    form = choose({}, quantization)
    seed *= 100

    def linear(num_outputs: int, num_inputs: int, number: int) -> products.Linear:
        weight = random(num_outputs, num_inputs, seed=seed + number) * num_inputs**-0.5
        return form.pack(weight, random(num_outputs, seed=seed + number + 50) if bias else None, native)

    return LayerParts(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=WIDTH,
        window=window,
        eps=1e-5,
        input_norm=random(HIDDEN, seed=seed + 1),
        qkv=linear((num_heads + 2 * num_kv_heads) * WIDTH, HIDDEN, 2),
        qk_norm=QkNorm(random(WIDTH, seed=seed + 3), random(WIDTH, seed=seed + 4), 1e-6) if norms else None,
        output=linear(HIDDEN, num_heads * WIDTH, 5),
        post_attention_norm=random(HIDDEN, seed=seed + 6),
        gate_up=linear(2 * INNER, HIDDEN, 7),
        down=linear(HIDDEN, INNER, 8),
    )


@settings(max_examples=40)
@given(
    starts=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    quantization=st.sampled_from(Quantization),
    heads=st.sampled_from([(4, 1), (4, 4), (8, 2), (12, 4)]),
    windows=st.lists(st.sampled_from([None, 1, 40]), min_size=1, max_size=3),
    norms=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_at_once_are_their_parts_one_by_one(
    starts: list[int],
    quantization: Quantization,
    heads: tuple[int, int],
    windows: list[int | None],
    norms: bool,
    bias: bool,
    seed: int,
) -> None:
    """NaN in every slot that no query sees; rows of padding beyond those of the step."""
    layers = [
        parts_of(quantization, heads, norms=norms, bias=bias, window=window, seed=seed + i)
        for i, window in enumerate(windows)
    ]
    fused = native.fuse_layers(layers)
    assert fused is not None
    size, generator = 16, torch.Generator().manual_seed(seed)
    starts = sorted(starts, reverse=True)
    num_blocks = sum(start // size + 1 for start in starts) + 3
    layout = KvLayout(num_blocks, heads[1], size)
    free = torch.randperm(num_blocks, generator=generator).tolist()
    spans = [Span(start, 1, block_table(free.pop() for _ in range(start // size + 1))) for start in starts]
    caches = [random(2, *layout, WIDTH, seed=seed + i) for i in range(len(layers))]
    for cache in caches:
        cache[:, free] = math.nan
        for start, _, table in spans:
            cache[:, table[-1], :, start % size + 1 :] = math.nan
    plans = native.plan_attention(spans, layout, windows, BF16, HostStage())
    rows = len(starts)
    x = random(rows + 2, HIDDEN, seed=seed + 1)
    angles = torch.randn(301, 1, WIDTH // 2, generator=generator)
    cos, sin = angles.cos().repeat(1, 1, 2).to(BF16), torch.cat((-angles.sin(), angles.sin()), -1).to(BF16)

    at_once, their_caches = x.clone(), [cache.clone() for cache in caches]
    assert fused(at_once, cos, sin, their_caches, plans)
    one_by_one, delta = x.clone(), None
    positions = torch.tensor([*starts, 0, 0])
    for parts, cache in zip(layers, caches, strict=True):
        layer = DecoderLayer(native, parts)
        delta = layer.forward(one_by_one, delta, cos[positions], sin[positions], cache, plans[parts.window])
    one_by_one += delta
    assert bool(at_once.isfinite().all())
    assert torch.equal(at_once[:rows].view(torch.int16), one_by_one[:rows].view(torch.int16))
    for one, other in zip(their_caches, caches, strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("length", [2, 5])
def test_a_step_with_a_prompt_is_computed_part_by_part(length: int) -> None:
    fused = native.fuse_layers([parts_of(Quantization.NONE, (4, 2), norms=False, bias=False)])
    assert fused is not None
    layout = KvLayout(4, 2, 16)
    spans = [Span(3, 1, block_table([0])), Span(0, length, block_table([1]))]
    plans = native.plan_attention(spans, layout, [None], BF16, HostStage())
    x, cache = random(length + 1, HIDDEN), torch.zeros(2, *layout, WIDTH, dtype=BF16)
    before = x.clone()
    assert not fused(x, x, x, [cache], plans)
    assert torch.equal(x, before)
    assert not bool(cache.any())


def test_what_is_not_all_ours_is_computed_part_by_part() -> None:
    parts = parts_of(Quantization.NONE, (4, 2), norms=False, bias=False)
    weight = torch.randn(HIDDEN, INNER)
    assert native.fuse_layers([parts, parts]) is not None
    others = {name: getattr(parts, name) for name in parts.__dataclass_fields__}
    in_float32 = LayerParts(**others | {"down": native.pack_linear(weight, None)})
    assert native.fuse_layers([parts, in_float32]) is None
    assert native.fuse_layers([LayerParts(**others | {"head_dim": 24})]) is None


@pytest.fixture(scope="module", params=["Llama", "Qwen3", "Mistral"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    window = {"sliding_window": 20} if request.param == "Mistral" else {}
    return write_checkpoint(tmp_path_factory.mktemp(request.param), Case(request.param, {**config, **window}))


def decoded(runner: Runner, num_tokens: int = 24) -> list[list[int]]:
    """Greedily, for prompts of several lengths, all of them in each step."""
    prompts = [random_prompt(length, seed=length) for length in (40, 17, 3)]
    outputs: list[list[int]] = [[] for _ in prompts]
    for _ in range(num_tokens):
        requests = []
        for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            known = prompt + output
            start = len(known) - 1 if output else 0
            blocks = range(16 * i, 16 * i + 16)
            requests.append(
                scheduled(known[start:], start=start, blocks=blocks, prompt=prompt, output=output, request_id=f"{i}")
            )
        sampled = runner.execute(StepPlan(tuple(requests))).sampled
        for i, output in enumerate(outputs):
            output.append(sampled[f"{i}"].token_id)
    return outputs


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.INT8, Quantization.INT4_GROUP32])
def test_a_model_decodes_the_same_tokens_by_all_layers_at_once(
    model_dir: Path, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    call = FusedLayers.__call__

    def counted(self: FusedLayers, *args: Any) -> bool:
        calls.append(done := call(self, *args))
        return done

    monkeypatch.setattr(FusedLayers, "__call__", counted)
    whole = decoded(load_runner(model_dir, precision=Precision.BFLOAT16, quantization=quantization))
    assert any(calls)
    monkeypatch.setattr(native, "fuse_layers", lambda _: None)
    apart = decoded(load_runner(model_dir, precision=Precision.BFLOAT16, quantization=quantization))
    assert whole == apart
    assert all(len(set(tokens)) > 1 for tokens in whole)
