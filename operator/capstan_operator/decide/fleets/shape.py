"""What requests are like for an engine: how deep their prompts are prefilled, and how much cache each one holds.

Learns from step samples and KV usage, which tell it at once; `Lengths` has to wait for requests to finish. Knows no
rates. The surprising idea: a prompt of I tokens has I²/2 attention pairs, so the pairs of all steps over their prefill
tokens are half the mean prompt in which prompts weigh by their length, and no request needs to be looked at.
"""

import numpy as np

from capstan_operator.decide.curve import Array
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.values import Value

_HALF_LIFE_S = 600.0
_CONTEXT_HALF_LIFE_S = 15.0
_ENOUGH_TOKENS = 1000


class Shape(Value):
    """Sums over recent steps; `context` is in KV slots."""

    prefill_tokens: float = 0
    prefill_pairs: float = 0
    context: float = 0
    """Held by one running request; 0 when none has run yet."""

    def learn(self, samples: Array, kv_tokens: float, running: float, seconds: float) -> "Shape":
        """The shape after `seconds` in which these steps [N, 7] were sampled; `running` requests hold `kv_tokens` now.

        A row is a `StepSample`: 3 the prefill tokens, 6 the pairs.
        """
        kept = 0.5 ** (seconds / _HALF_LIFE_S)
        new_tokens, new_pairs = np.add.reduce(samples[:, 3::3]).tolist()
        tokens, pairs = kept * self.prefill_tokens + new_tokens, kept * self.prefill_pairs + new_pairs
        context = self.context
        if running >= 1 and kv_tokens > 0:
            share = 1 - 0.5 ** (seconds / _CONTEXT_HALF_LIFE_S) if context > 0 else 1.0
            context += share * (kv_tokens / running - context)
        return Shape.made(prefill_tokens=tokens, prefill_pairs=pairs, context=context)

    @property
    def depth(self) -> float | None:
        """Mean attention pairs of a prefill token; None until enough were computed."""
        return self.prefill_pairs / self.prefill_tokens if self.prefill_tokens >= _ENOUGH_TOKENS else None

    def token_seconds(self, model: EngineModel, prompt: float) -> float:
        """Cost of one more prefill token at the usual depth; that of a mean `prompt` until one is known.

        Above zero for a model that is usable: no prompt is shorter than one token, whatever has been counted of them.
        """
        depth = self.depth
        return model.prefill_token_seconds(max(1.0, prompt if depth is None else 2 * depth))

    def long_prompt(self, prompt: float) -> float:
        """Mean prompt when prompts weigh by their length, at least the plain mean `prompt`."""
        depth = self.depth
        return max(prompt, 2 * depth) if depth is not None else prompt
