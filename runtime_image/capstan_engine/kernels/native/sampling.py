"""The most likely tokens in one call; where a draw is more than that, torch does it."""

from collections.abc import Sequence

import torch

from capstan_engine.kernels import reference
from capstan_engine.kernels.draw import Draw
from capstan_engine.kernels.native.library import required


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw], drawn: torch.Tensor) -> torch.Tensor:
    """int64 `[n]`: a token id for each row of `logits` `[n, V]`, as the twin chooses it."""
    if logits.dtype is not torch.bfloat16 or any(draw.changes_logits or not draw.is_greedy for draw in draws):
        return reference.choose_tokens(logits, draws, drawn)
    tokens, logits = torch.empty(len(logits), dtype=torch.int64), logits.contiguous()
    required().capstan_most_likely(logits.data_ptr(), *logits.shape, tokens.data_ptr())
    return tokens
