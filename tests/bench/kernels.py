"""The Triton kernels against what the GPU can do, measured in the same run, and against torch's own.

    python tests/bench/kernels.py                   the table; adds its rows to build/bench/gpu.json
    python tests/bench/kernels.py --tune machine    first measures tiles and keeps the fastest on this machine
    python tests/bench/kernels.py --tune shipped    the same, into the file that ships with the engine

Shapes are Llama-3-8B's in bfloat16. A ratio above 1 means that ours is better than the peer; against a ceiling (`copy`,
`matmul`) it is the share that is reached. Times are of CUDA graphs, so that launching is left out, as it is in an
engine that replays them. Weights and caches are read as in an engine, too: not from the GPU's own cache, out of which
the other layers have driven them. So small ones are there several times and used in turn.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import triton.testing as triton_testing
from results import BUILD, Case, Row, comparison, measure
from roofline import Ceilings, Timer, ceilings
from torch.nn import functional
from torch.nn.attention import flex_attention
from triton.runtime.errors import OutOfResources

from capstan_engine.block_table import block_table
from capstan_engine.kernels import Draw, KvLayout, Span, triton
from capstan_engine.kernels.triton.decode import decode
from capstan_engine.kernels.triton.gemm import gemm
from capstan_engine.kernels.triton.machine import DEVICE
from capstan_engine.kernels.triton.planning import TritonPlan
from capstan_engine.kernels.triton.prefill import prefill
from capstan_engine.kernels.triton.tiles import GEMM, GemmTile, Tile, gemm_rows, shape_of
from capstan_engine.kernels.triton.tuning import (
    SHIPPED,
    Known,
    Measured,
    attention_problem,
    candidates,
    extend,
    extended,
    fastest,
    gemm_problem,
    read_again,
    tile_for,
)

Call = Callable[..., object]


@dataclass(frozen=True)
class Sizes:
    """Of the model and of the cases; the tests have smaller ones."""

    num_heads: int = 32
    num_kv_heads: int = 8
    width: int = 128
    hidden: int = 4096
    inner: int = 14336
    vocab: int = 128256
    block_size: int = 16
    matrix: int = 8192
    copied_bytes: int = 2 << 30
    decodes: Sequence[tuple[int, int]] = ((1, 4096), (32, 4096), (256, 1024), (8, 32768))
    """Sequences and their context."""
    prompts: Sequence[tuple[int, int]] = ((1, 1024), (4, 2048), (1, 16384))
    """Sequences and their length."""
    rows: Sequence[int] = (64, 8192)
    gemm_rows: Sequence[int] = (1, 16, 32, 64, 128, 256)
    evicting_bytes: int = 256 << 20
    """What has been read since drives everything else out of the GPU's cache: an H200's is 60 MB."""
    dtype: torch.dtype = torch.bfloat16

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the model's products."""
        width = self.num_heads * self.width
        return {
            "qkv": (width + 2 * self.num_kv_heads * self.width, self.hidden),
            "output": (self.hidden, width),
            "gate and up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }


@dataclass(frozen=True)
class Attention:
    """Queries over a cache in which every sequence has its own blocks."""

    queries: torch.Tensor
    cache: torch.Tensor
    plan: TritonPlan

    def run(self) -> torch.Tensor:
        return triton.attention(self.queries, self.cache, self.plan, self.queries.shape[-1] ** -0.5)

    def run_with(self, kernel: str, tile: Tile) -> None:
        scale = self.queries.shape[-1] ** -0.5
        out = torch.empty(self.queries.shape[0], self.queries[0].numel(), dtype=self.queries.dtype, device=DEVICE)
        if kernel == "decode":
            assert self.plan.decodes is not None
            decode(self.queries, self.cache, self.plan.decodes, out, scale, None, None, tile)
        else:
            assert self.plan.chunks is not None
            prefill(self.queries, self.cache, self.plan.chunks, out, scale, None, None, None, tile)


def attention(sizes: Sizes, num: int, context: int, length: int) -> Attention:
    """`num` sequences with `context` keys each, of which the last `length` are queries."""
    per_sequence = -(-context // sizes.block_size)
    layout = KvLayout(num * per_sequence, sizes.num_kv_heads, sizes.block_size)
    scattered = torch.randperm(layout.num_blocks).view(num, per_sequence).tolist()
    spans = [Span(context - length, length, block_table(table)) for table in scattered]
    stage = triton.new_stage()
    plan = triton.plan_attention(spans, layout, [None], sizes.dtype, stage)[None]
    stage.send()
    return Attention(
        torch.randn(num * length, sizes.num_heads, sizes.width, dtype=sizes.dtype, device=DEVICE),
        torch.randn(2, *layout, sizes.width, dtype=sizes.dtype, device=DEVICE),
        plan,
    )


@dataclass(frozen=True)
class InTurn:
    """Calls that do the same, each with operands of its own."""

    calls: Sequence[Call]

    def __call__(self) -> None:
        for call in self.calls:
            call()

    def seconds(self, timer: Timer) -> float:
        """Of one of them."""
        return timer(self) / len(self.calls)


def num_copies(sizes: Sizes, num_bytes: int) -> int:
    """Of operands of so many bytes, so that none is found in the GPU's cache when its turn comes."""
    return max(1, -(-sizes.evicting_bytes // num_bytes))


def cases(timer: Timer, sizes: Sizes, compiled: Callable[[Call], Call]) -> Iterator[Case]:
    """`compiled` is `torch.compile`, which flex_attention needs to be a peer at all."""
    limit = ceilings(timer, matrix=sizes.matrix, copied_bytes=sizes.copied_bytes, dtype=sizes.dtype, device=DEVICE)
    for num, context in sizes.decodes:
        yield Case(f"decode attention, {num} × {context} keys", partial(_decode, timer, sizes, limit, num, context))
    flex = compiled(flex_attention.flex_attention)
    for num, length in sizes.prompts:
        name = f"prefill attention, {num} × {length} tokens"
        yield Case(name, partial(_prefill, timer, sizes, limit, flex, num, length))
    yield Case("prefill attention behind a prefix", partial(_prefill_behind_a_prefix, timer, sizes, limit))
    for name in sizes.weights:
        for rows in sizes.gemm_rows[:4]:
            yield Case(f"product {name}, {rows} rows", partial(_product, timer, sizes, limit, name, rows))
    for rows in sizes.rows:
        yield Case(f"elementwise, {rows} rows", partial(_elementwise, timer, sizes, limit, rows))
    yield Case("sampling", partial(_sampler, timer, sizes))


def _random(sizes: Sizes, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=sizes.dtype, device=DEVICE)


def _decode(timer: Timer, sizes: Sizes, limit: Ceilings, num: int, context: int) -> Iterator[Row]:
    case = f"decode attention, {num} × {context} keys"
    num_bytes = 2 * num * context * sizes.num_kv_heads * sizes.width * sizes.dtype.itemsize
    copies = range(num_copies(sizes, num_bytes))
    ours = InTurn([attention(sizes, num, context, 1).run for _ in copies]).seconds(timer)
    yield _time(case, ours, "copy", num_bytes / limit.bytes_per_s)
    peers = [partial(_sdpa, *_contiguous(sizes, num, context, 1)) for _ in copies]
    yield _time(case, ours, "SDPA, contiguous", InTurn(peers).seconds(timer))


def _contiguous(sizes: Sizes, num: int, context: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as torch's own attention takes them: `[S, heads, L, D]`."""
    k, v = _random(sizes, 2, num, sizes.num_kv_heads, context, sizes.width)
    return _random(sizes, num, sizes.num_heads, length, sizes.width), k, v


_sdpa = partial(functional.scaled_dot_product_attention, enable_gqa=True)


def _prefill(timer: Timer, sizes: Sizes, limit: Ceilings, flex: Call, num: int, length: int) -> Iterator[Row]:
    case = f"prefill attention, {num} × {length} tokens"
    ours = timer(attention(sizes, num, length, length).run)
    flops = 4 * num * sizes.num_heads * sizes.width * length * (length + 1) / 2
    yield _rate(case, flops, ours, "matmul", flops / limit.flops_per_s)
    operands = _contiguous(sizes, num, length, length)
    yield _rate(case, flops, ours, "SDPA, contiguous", timer(partial(_sdpa, *operands, is_causal=True)))
    mask = flex_attention.create_block_mask(_is_causal, None, None, length, length, device=DEVICE)
    peer = partial(flex, *operands, block_mask=mask, enable_gqa=True)
    yield _rate(case, flops, ours, "flex_attention, contiguous", timer(peer))


def _prefill_behind_a_prefix(timer: Timer, sizes: Sizes, limit: Ceilings) -> Iterator[Row]:
    """The last eighth of a prompt behind its cached beginning."""
    num, length = max(sizes.prompts, key=lambda prompt: prompt[1])
    chunk = length // 8
    flops = 4 * num * sizes.num_heads * sizes.width * chunk * (length - chunk / 2)
    ours = timer(attention(sizes, num, length, chunk).run)
    yield _rate(f"prefill attention, last {chunk} of {length}", flops, ours, "matmul", flops / limit.flops_per_s)


def _is_causal(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return query >= key


def _product(timer: Timer, sizes: Sizes, limit: Ceilings, name: str, rows: int) -> Iterator[Row]:
    """As the engine chooses between cuBLAS and our own: without measured tiles both are the same."""
    case = f"product {name}, {rows} rows"
    x, weights = _operands(sizes, *sizes.weights[name], rows)
    ours = InTurn([partial(triton.pack_linear(weight, None), x) for weight in weights]).seconds(timer)
    yield _time(case, ours, "copy", weights[0].nbytes / limit.bytes_per_s)
    yield _time(case, ours, "cuBLAS", _cublas(x, weights).seconds(timer))


def _operands(sizes: Sizes, outputs: int, inputs: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations `[rows, K]` and weights `[copies, N, K]`."""
    copies = num_copies(sizes, outputs * inputs * sizes.dtype.itemsize)
    return _random(sizes, rows, inputs), _random(sizes, copies, outputs, inputs)


def _cublas(x: torch.Tensor, weights: torch.Tensor) -> InTurn:
    return InTurn([partial(functional.linear, x, weight) for weight in weights])


def _elementwise(timer: Timer, sizes: Sizes, limit: Ceilings, rows: int) -> Iterator[Row]:
    case = f"residual and norm, {rows} rows"
    x, delta = _random(sizes, 2, rows, sizes.hidden)
    weight = _random(sizes, sizes.hidden)
    ours = timer(partial(triton.add_rms_norm, x, delta, weight, 1e-5))
    yield _time(case, ours, "copy", 4 * x.nbytes / limit.bytes_per_s)
    yield _time(case, ours, "torch", timer(lambda: functional.rms_norm(x.add_(delta), weight.shape, weight, 1e-5)))

    case = f"gated activation, {rows} rows"
    both = _random(sizes, rows, 2 * sizes.inner)
    gate, up = both.chunk(2, -1)
    ours = timer(partial(triton.silu_and_mul, both))
    yield _time(case, ours, "copy", 1.5 * both.nbytes / limit.bytes_per_s)
    yield _time(case, ours, "torch", timer(lambda: functional.silu(gate) * up))

    cached = attention(sizes, rows, sizes.block_size, 1)
    heads = _random(sizes, rows, sizes.num_heads + 2 * sizes.num_kv_heads, sizes.width)
    turn = _random(sizes, rows, 1, sizes.width)
    ours = timer(partial(triton.rotate_and_write_kv, heads, turn, turn, None, cached.cache, cached.plan))
    yield _time(f"rotation and KV write, {rows} rows", ours, "copy", 2 * heads.nbytes / limit.bytes_per_s)


def _sampler(timer: Timer, sizes: Sizes) -> Iterator[Row]:
    rows = sizes.rows[0]
    logits = 3 * _random(sizes, rows, sizes.vocab)
    draws = [Draw(0.8, 50, 0.9, 0.0, seed, 0, None, {}) for seed in range(rows)]
    stage = triton.new_stage()
    rules = triton.plan_draws(draws, stage)
    stage.send()
    ours = timer(partial(triton.choose_tokens, logits, rules, torch.empty(0, dtype=torch.int64, device=DEVICE)))
    yield _time(f"top-k and top-p, {rows} rows", ours, "torch.sort", timer(partial(_sorting, logits)))


def _sorting(logits: torch.Tensor) -> torch.Tensor:
    """The usual way: sort, cut, draw."""
    values, ids = torch.sort(logits.float() / 0.8, descending=True)
    values[:, 50:] = -torch.inf
    shares = torch.softmax(values, -1)
    shares[shares.cumsum(-1) - shares > 0.9] = 0
    return ids.gather(1, torch.multinomial(shares, 1))


def _time(case: str, ours_s: float, peer: str, peer_s: float) -> Row:
    return comparison(case, ours_s * 1e6, "µs", peer, peer_s * 1e6, peer_s / ours_s)


def _rate(case: str, flops: float, ours_s: float, peer: str, peer_s: float) -> Row:
    return comparison(case, flops / ours_s / 1e12, "TFLOP/s", peer, flops / peer_s / 1e12, peer_s / ours_s)


def tune(timer: Timer, sizes: Sizes, gpu: str) -> Iterator[Known]:
    """The fastest tiles for the model of `sizes`: of attention, and of those products in which they beat cuBLAS."""
    yield from _tuned_attention(timer, sizes, gpu)
    for outputs, inputs in sizes.weights.values():
        yield _tuned_products(timer, sizes, gpu, outputs, inputs)


def _tuned_products(timer: Timer, sizes: Sizes, gpu: str, outputs: int, inputs: int) -> Known:
    """For each number of rows. A tile must be faster by a twentieth to be worth another order of sums."""
    known: Known = {}
    for rows in sizes.gemm_rows:
        x, weights = _operands(sizes, outputs, inputs, rows)

        def microseconds(tile: GemmTile, x: torch.Tensor = x, weights: torch.Tensor = weights) -> float | None:
            return _microseconds(timer, InTurn([partial(gemm, x, weight, None, tile) for weight in weights]))

        best = fastest((tile for tile in GEMM if tile.rows <= gemm_rows(max(rows, 2))), microseconds)
        if best is not None and best.microseconds < 0.95e6 * _cublas(x, weights).seconds(timer):
            problem = gemm_problem(gpu, gemm_rows(rows), outputs, inputs, sizes.dtype.itemsize)
            known[problem] = Measured(tuple(best.tile), best.microseconds)
    return known


def _microseconds(timer: Timer, calls: InTurn) -> float | None:
    """None where the GPU cannot run it."""
    try:
        return 1e6 * calls.seconds(timer)
    except OutOfResources:
        return None


def _tuned_attention(timer: Timer, sizes: Sizes, gpu: str) -> Iterator[Known]:
    """At the second of the cases each."""
    problem = (sizes.width, sizes.dtype.itemsize, sizes.num_heads // sizes.num_kv_heads)
    num, context = sizes.decodes[1]
    prompts, length = sizes.prompts[1]
    both = {"decode": attention(sizes, num, context, 1), "prefill": attention(sizes, prompts, length, length)}
    for kernel, case in both.items():

        def microseconds(tile: Tile, kernel: str = kernel, case: Attention = case) -> float | None:
            return _microseconds(timer, InTurn([partial(case.run_with, kernel, tile)]))

        best = fastest(candidates(tile_for(kernel, *problem)), microseconds)
        assert best is not None, f"this GPU can run no tile of {kernel}"
        yield {
            attention_problem(kernel, gpu, shape_of(*problem[:2]), problem[2]): Measured(
                tuple(best.tile), best.microseconds
            )
        }


def in_a_graph(call: Callable[[], object]) -> float:
    """Seconds that a call takes when it is replayed."""
    return float(triton_testing.do_bench_cudagraph(call, return_mode="median")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", choices=("machine", "shipped"), help="measure tiles first, and keep them there")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("kernels: no CUDA device is visible; these benches measure one")
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, torch {torch.__version__}\n")
    with torch.inference_mode():
        if arguments.tune:
            for tiles in tune(in_a_graph, Sizes(), gpu):
                extend(SHIPPED if arguments.tune == "shipped" else extended(), tiles)
                for problem, measured in tiles.items():
                    print(problem.kernel, problem.sizes, measured, flush=True)
            read_again()
        failed = measure(cases(in_a_graph, Sizes(), torch.compile), BUILD / "gpu.json")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
