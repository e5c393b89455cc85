"""Log probabilities for people and evaluations: from the model's raw logits, in float32."""

from collections.abc import Sequence

import torch

from capstan_engine.messages import TokenLogprobs


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """One entry for each row of `logits` `[n, V]`: of `token_ids[i]`, then of the `counts[i]` most likely tokens.

    All values of a row come from one tensor, so that a greedy token's log probability equals the largest one exactly.
    The token itself comes first and once more in its place among the most likely, if it is one of them.
    """
    values = torch.log_softmax(logits, -1, dtype=torch.float32)
    own = values.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(1))  # [n, 1]
    ranks = ((values > own).sum(-1) + 1).tolist()
    most = min(max(counts), logits.shape[-1])
    top_values, top_ids = (part.tolist() for part in values.topk(most))
    return [
        TokenLogprobs((token_id, *top_ids[i][:count]), (value, *top_values[i][:count]), ranks[i])
        for i, (token_id, [value], count) in enumerate(zip(token_ids, own.tolist(), counts, strict=True))
    ]
