"""Log probabilities for people and evaluations: from the model's raw logits, in float32.

In two parts, since the host must not wait for the device between steps: `score` on the device, `token_logprobs` of what
it left when that has arrived.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from capstan_engine.messages import TokenLogprobs


class Scores(NamedTuple):
    """Of n positions, each with its own token and the k most likely ones."""

    token_ids: torch.Tensor
    """int64 `[n]`"""
    own: torch.Tensor
    """float32 `[n]`"""
    ranks: torch.Tensor
    """int64 `[n]`: 1 is the most likely."""
    top_ids: torch.Tensor
    """int64 `[n, k]`"""
    top: torch.Tensor
    """float32 `[n, k]`"""


def score(logits: torch.Tensor, token_ids: torch.Tensor, most: int) -> Scores:
    """Of `token_ids` `[n]` under `logits` `[n, V]`, and `most` alternatives. Ids below 0 count as token 0.

    All values of a row come from one tensor, so that a greedy token's log probability equals the largest one exactly.
    """
    values = torch.log_softmax(logits, -1, dtype=torch.float32)
    own = values.gather(1, token_ids.clamp(min=0).unsqueeze(1))  # [n, 1]
    top, top_ids = values.topk(min(most, logits.shape[-1]))
    return Scores(token_ids, own.squeeze(1), (values > own).sum(-1) + 1, top_ids, top)


def token_logprobs(scores: Scores, counts: Sequence[int]) -> list[TokenLogprobs]:
    """One entry for each row: of its token, then of the `counts[i]` most likely ones.

    The token itself comes first and once more in its place among the most likely, if it is one of them.
    """
    token_ids, own, ranks, top_ids, top = (part.tolist() for part in scores)
    return [
        TokenLogprobs((token_ids[i], *top_ids[i][:count]), (own[i], *top[i][:count]), ranks[i])
        for i, count in enumerate(counts)
    ]
