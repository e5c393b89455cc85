"""How well a model predicts held-out text, and how often a draft would guess its target's next token.

This module knows figures, not how they are printed.
"""

import math
from dataclasses import dataclass

import torch

from models.dataset import WINDOW_TOKENS, HeldOut
from models.network import Llama
from models.training import next_token_loss


@dataclass(frozen=True)
class Quality:
    """Figures over one held-out stream.

    Perplexity is per token, bits are per byte of text. `agreement` is the share of positions where model and teacher
    find the same token most likely: what a greedy draft would have accepted.
    """

    name: str
    num_tokens: int
    perplexity: float
    bits_per_byte: float
    agreement: float | None


@torch.no_grad()
def evaluate(model: Llama, stream: HeldOut, teacher: Llama | None = None) -> Quality:
    """Measure a held-out stream in windows of 1024 tokens, without overlap."""
    tokens = stream.tokens.long()
    inputs, targets = tokens[:-1], tokens[1:]
    nats = 0.0
    agreed = 0
    for start in range(0, len(inputs), WINDOW_TOKENS):
        window = inputs[None, start : start + WINDOW_TOKENS]
        nats += next_token_loss(model, window, targets[None, start : start + WINDOW_TOKENS]).item()
        if teacher is not None:
            agreed += int((model(window).argmax(-1) == teacher(window).argmax(-1)).sum())
    return Quality(
        name=stream.name,
        num_tokens=len(inputs),
        perplexity=math.exp(nats / len(inputs)),
        bits_per_byte=nats / math.log(2) / stream.num_bytes,
        agreement=None if teacher is None else agreed / len(inputs),
    )
