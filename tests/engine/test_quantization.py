"""Weights rounded while loading: each product against its dequantized twin, and what rounding costs a real model."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from capstan_api.engine_args import Precision, Quantization
from capstan_engine import kernels
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.native import products
from capstan_engine.kernels.native.library import LEVELS, compiled, library, load, processor_flags
from capstan_engine.messages import SamplingParams
from capstan_engine.quant import rounding
from capstan_engine.quant.choose import choose
from capstan_engine.quant.format import Format
from capstan_engine.runner.load import build_runner
from capstan_engine.scheduler.step import StepPlan
from tiny_models import CASES, load_runner, scheduled, write_checkpoint

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runtime_image" / "models" / "capstan-tiny"
ROUNDED = [each for each in Quantization if each is not Quantization.NONE]
CPU = kernels.choose()

torch.set_num_threads(1)


@pytest.fixture(params=[*LEVELS, None], ids=lambda level: level.name if level else "torch")
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with the compiled products of each level that this processor has, and with their twins."""
    if request.param is None:
        monkeypatch.setattr(products, "library", lambda: None)
    elif library() is None or not request.param.flags <= processor_flags():
        pytest.skip("no such compiled products here")
    else:
        found = load(compiled(request.param))
        monkeypatch.setattr(products, "library", lambda: found)


def made(quantization: Quantization) -> Format:
    return choose({}, quantization)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def widened(quantization: Quantization, weight: torch.Tensor) -> torch.Tensor:
    """The float32 weight that a format's integers stand for."""
    if quantization.startswith("Int4"):
        return rounding.widen_groups(*rounding.round_groups(weight, int(quantization.removeprefix("Int4Group"))))
    codes, channel_scales = rounding.round_channels(weight)
    return codes * channel_scales[:, None]


def as_rounded(quantization: Quantization, x: torch.Tensor) -> torch.Tensor:
    """The float32 activations that a format multiplies, compiled or not."""
    if products.library() is None:
        if quantization is not Quantization.INT8_DYNAMIC:
            return x.float()
        codes, largest = rounding.round_rows(x)
        return (codes.float() - 128) * largest / 127
    most = 32767 if quantization is Quantization.INT8 else 127
    size = int(quantization.removeprefix("Int4Group")) if quantization.startswith("Int4") else 128
    return torch.cat([in_integers(part, most) for part in x.float().split(size, 1)], 1)


def in_integers(x: torch.Tensor, most: int) -> torch.Tensor:
    """Each row rounded to multiples of a scale of its own."""
    scales = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / most
    return (x / scales).round() * scales


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.float() - wanted).norm() / wanted.norm()).item()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("quantization", ROUNDED)
@pytest.mark.parametrize("shape", [(16, 128), (48, 384), (1040, 768)])
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_a_product_is_that_of_the_dequantized_twin(
    quantization: Quantization, shape: tuple[int, int], rows: int
) -> None:
    weight, bias, x = random(*shape), random(shape[0], seed=1), random(rows, shape[1], seed=2)
    got = made(quantization).pack(weight, bias, CPU)(x)
    assert got.dtype == torch.bfloat16
    wanted = as_rounded(quantization, x) @ widened(quantization, weight).T + bias.float()
    assert relative_error(got, wanted) < 5e-3


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("quantization", ROUNDED)
def test_a_row_does_not_depend_on_those_beside_it(quantization: Quantization) -> None:
    linear = made(quantization).pack(random(80, 1152), None, CPU)
    x = random(27, 1152, seed=1)
    # A neighbour a thousand times as large would take all the levels if a scale were shared.
    x[4] *= 1000
    together = linear(x)
    for row in range(len(x)):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])


@pytest.mark.skipif(library() is None, reason="no compiled products here")
@pytest.mark.parametrize("num_outputs", [1, 63, 64, 65, 200])
def test_compiled_products_take_any_number_of_outputs(num_outputs: int) -> None:
    """They come in blocks of 64, and nothing is written beyond the last."""
    weight, x = random(num_outputs, 128), random(5, 128, seed=1)
    product = products.pack_int8(*rounding.round_channels(weight), None)
    assert product is not None
    assert relative_error(product(x), x.float() @ widened(Quantization.INT8, weight).T) < 5e-3


@pytest.mark.skipif(library() is None, reason="no compiled products here")
def test_compiled_products_are_the_same_on_two_threads() -> None:
    product = products.pack_int8(*rounding.round_channels(random(320, 256)), None)
    assert product is not None
    x = random(40, 256, seed=1)
    alone = product(x)
    torch.set_num_threads(2)
    try:
        assert torch.equal(product(x), alone)
    finally:
        torch.set_num_threads(1)


@given(rows=st.integers(1, 5), scale=st.floats(1e-6, 1e4), seed=st.integers(0, 1000))
def test_rounding_errs_by_half_a_level_at_most(rows: int, scale: float, seed: int) -> None:
    x = random(rows, 64, seed=seed) * scale
    codes, scales = rounding.round_channels(x)
    assert bool(((codes * scales[:, None] - x.float()).abs() <= scales[:, None] * 0.5001).all())
    grouped = rounding.round_groups(x, 32)
    levels = grouped[1].float().T.repeat_interleave(32, 1)
    # Scale and middle value are bfloat16: 8 bits, so the ends of the range may lie some way beyond the last level.
    assert bool(((rounding.widen_groups(*grouped) - x.float()).abs() <= 0.6 * levels).all())
    u, largest = rounding.round_rows(x)
    assert bool((((u.float() - 128) * largest / 127 - x.float()).abs() <= largest / 127 * 0.5001).all())


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("quantization", ROUNDED)
@pytest.mark.parametrize("value", [0.0, 0.75, -3.0])
def test_equal_weights_stay_what_they_are(quantization: Quantization, value: float) -> None:
    weight = torch.full((16, 128), value, dtype=torch.bfloat16)
    got = made(quantization).pack(weight, None, CPU)(torch.eye(128, dtype=torch.bfloat16))
    assert torch.allclose(got.float(), weight.float().T, rtol=1e-2)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("quantization", ROUNDED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_damaged_weight_is_not_rounded_away(quantization: Quantization, value: float) -> None:
    weight = random(16, 128)
    weight[3, 5] = value
    got = made(quantization).pack(weight, None, CPU)(random(2, 128, seed=1))
    assert not bool(got[:, 3].isfinite().any())


def test_a_token_that_is_not_finite_stays_so() -> None:
    x = random(3, 128)
    x[1, 7] = math.nan
    got = made(Quantization.INT8_DYNAMIC).pack(random(16, 128), None, CPU)(x)
    assert got.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("quantization", "shape", "message"),
    [
        (Quantization.INT4_GROUP64, (16, 96), r"multiple of 64 and outputs of 16, and one has 96 and 16"),
        (Quantization.INT4_GROUP32, (24, 96), r"multiple of 32 and outputs of 16, and one has 96 and 24"),
        (Quantization.INT8, (16, 40), r"multiple of 32, and one has 40; take Int8Dynamic"),
    ],
)
def test_shapes_that_the_products_cannot_take_are_refused(
    quantization: Quantization, shape: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "library", lambda: None)
    with pytest.raises(ConfigurationError, match=message):
        made(quantization).pack(random(*shape), None, CPU)


@pytest.mark.parametrize("quantization", ROUNDED)
def test_float32_is_refused_with_the_remedy(quantization: Quantization, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama"])
    with pytest.raises(
        ConfigurationError,
        match=f"{quantization} computes in bfloat16.*not in float32 on cpu; set precision to BFloat16",
    ):
        load_runner(directory, quantization=quantization)


@pytest.fixture(scope="module")
def perplexity() -> Callable[[Quantization], float]:
    """Of the shipped model over a text that it was never trained on."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    token_ids = tokenizer.encode((ROOT / "ARCHITECTURE.md").read_text()).ids[:768]

    def measure(quantization: Quantization) -> float:
        runner = build_runner(
            MODEL,
            precision=Precision.BFLOAT16,
            quantization=quantization,
            kv_cache_bytes=16 << 20,
            block_size=16,
            max_model_len=1024,
            num_threads=1,
        )
        params = SamplingParams(seed=0, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        request = scheduled(token_ids, blocks=range(48), params=params)
        logprobs = runner.execute(StepPlan((request,))).prompt_logprobs["a"]
        return math.exp(-sum(each.logprobs[0] for each in logprobs) / len(logprobs))

    return measure


def test_rounding_costs_the_shipped_model_little(perplexity: Callable[[Quantization], float]) -> None:
    plain = perplexity(Quantization.NONE)
    cost = {quantization: perplexity(quantization) / plain - 1 for quantization in ROUNDED}
    assert max(abs(cost[Quantization.INT8]), abs(cost[Quantization.INT8_DYNAMIC])) < 0.02, cost
    assert cost[Quantization.INT4_GROUP32] < 0.12, cost
    assert cost[Quantization.INT4_GROUP128] < 0.20, cost
