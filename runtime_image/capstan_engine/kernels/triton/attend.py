"""One step of flash attention: a tile of queries meets some keys of a paged cache.

The inner loop of both attention kernels, so that decode and prefill are one mathematics. Knows neither what the rows
are nor which keys come next. Scores are in units of log 2: `exp2` is an instruction and `exp` is not.
Algorithm: Dao et al., FlashAttention-2 (2023); online softmax: Milakov and Gimelshein (2018).
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend(
    acc: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    q: tl.tensor,
    cache: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    kv_head: tl.tensor,
    keys: tl.tensor,
    held: tl.tensor,
    visible: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """`acc` `[M, D]`, `largest` and `total` `[M]` of the softmax so far, after `keys` `[N]` as well.

    `values` is the distance from a key to its value in the cache. Keys that are not `held` `[N]` are never read: their
    slots may hold anything. Those that are not `visible` `[M or 1, N]` have no weight. Without `MASKED` all are both.
    """
    dims = tl.arange(0, BLOCK_D)
    if MASKED:
        blocks = tl.load(table + keys // BLOCK_SIZE, mask=held, other=0)
    else:
        blocks = tl.load(table + keys // BLOCK_SIZE)
    rows = (blocks.to(tl.int64) * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + keys % BLOCK_SIZE
    address = cache + rows[:, None] * WIDTH + dims[None, :]
    if MASKED:
        inside = held[:, None] & (dims < WIDTH)[None, :]
        k = tl.load(address, mask=inside, other=0.0)
        v = tl.load(address + values, mask=inside, other=0.0)
    elif WIDTH < BLOCK_D:
        k = tl.load(address, mask=(dims < WIDTH)[None, :], other=0.0)
        v = tl.load(address + values, mask=(dims < WIDTH)[None, :], other=0.0)
    else:
        k = tl.load(address)
        v = tl.load(address + values)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
    if CAPPED:
        # tanh(x) = 2 · sigmoid(2x) - 1
        scores = soft_cap * (2 * tl.sigmoid(2 * scale / soft_cap * scores) - 1) * LOG2_E
    else:
        scores = scores * (scale * LOG2_E)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    grown = tl.maximum(largest, tl.max(scores, 1))
    # A row that has seen nothing yet: -inf - -inf would be NaN.
    shift = tl.where(grown == float("-inf"), 0.0, grown)
    weights = tl.exp2(scores - shift[:, None])
    fade = tl.exp2(largest - shift)
    total = total * fade + tl.sum(weights, 1)
    acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * fade[:, None], input_precision="ieee")
    return acc, grown, total
