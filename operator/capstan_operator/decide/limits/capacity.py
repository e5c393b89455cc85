"""What one replica can serve for ever: the batch that its steps keep fed, and the requests that this makes a second.

Knows no queue and no TTFT, only steps short enough for a TPOT and a KV cache of some size.
"""

from typing import Final

from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.seen.signals import Lengths

HEADROOM: Final = 0.95
"""Of a TPOT threshold: what steps are aimed at."""


def sustained_batch(model: EngineModel, lengths: Lengths, step_s: float) -> float:
    """Sequences that can decode for ever in steps of `step_s`, when each step also prefills those that take over."""
    refill_s = model.prefill_token_seconds(lengths.prompt) * lengths.computed_prompt / max(1.0, lengths.output)
    return max(0.0, step_s - model.coefficients[0]) / max(1e-9, model.sequence_seconds(lengths.context) + refill_s)


def requests_per_s(
    model: EngineModel, lengths: Lengths, threshold_s: float | None, max_sequences: int, kv_tokens: float
) -> float:
    """What one replica serves when it is loaded as far as TPOT and KV allow, and no TTFT is asked for."""
    sequences = float(max_sequences)
    if threshold_s is not None:
        sequences = min(sequences, sustained_batch(model, lengths, HEADROOM * threshold_s))
    if kv_tokens > 0:
        sequences = min(sequences, kv_tokens / max(1.0, lengths.context))
    sequences = max(1.0, sequences)
    refill_s = model.prefill_token_seconds(lengths.prompt) * sequences * lengths.computed_prompt / lengths.output
    step_s = model.step_seconds(0, sequences, sequences * lengths.context) + refill_s
    return sequences / (lengths.output * max(step_s, 1e-6))
