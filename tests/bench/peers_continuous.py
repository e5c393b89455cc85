"""The engine bench's peer: transformers' continuous batching with scaled_dot_product_attention, greedy."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
import transformers
from transformers.generation.configuration_utils import ContinuousBatchingConfig

NAME: Final = "transformers continuous batching"
_PAGE: Final = 256
"""Tokens; its own default."""


class Batch(NamedTuple):
    """All requests of a run."""

    rate: float
    """Output tokens per second."""
    tokens: list[list[int]]
    """Of each request; none of one that had not ended when the time was over."""


class ContinuousBatching:
    """The model, loaded; memory for keys and values is taken when it runs, and as much as the run needs."""

    def __init__(self, model_dir: Path, device: str, batched_tokens: int) -> None:
        self._batched_tokens = batched_tokens
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self._model = model.to(device).eval()

    def run(self, prompts: Sequence[list[int]], lengths: Sequence[int], limit_s: float) -> Batch:
        """All requests at once, each until it has its number of tokens, or until `limit_s` are over."""
        greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=max(lengths), eos_token_id=-1)
        requests = list(zip(prompts, lengths, strict=True))
        config = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=sum(1 + (len(prompt) + length) // _PAGE for prompt, length in requests),
            max_batch_tokens=self._batched_tokens,
            # Flash kernels would be another peer, and one only where somebody has installed them.
            auto_switch_to_flash=False,
        )
        with self._model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=config
        ) as manager:
            started = time.perf_counter()
            ids = [manager.add_request(prompt, max_new_tokens=length) for prompt, length in requests]
            tokens: dict[str, list[int]] = {}
            while len(tokens) < len(ids) and time.perf_counter() < started + limit_s:
                output = manager.get_result(timeout=1)
                if output is not None and output.error is not None:
                    raise RuntimeError(f"{NAME}: {output.error}")
                if output is not None and output.is_finished():
                    tokens[output.request_id] = list(output.generated_tokens)
                elif output is None and not manager.is_running():
                    raise RuntimeError(f"{NAME} ended before its requests")
            seconds = time.perf_counter() - started
            for request_id in ids:
                manager.cancel_request(request_id)
        ended = [tokens.get(request_id, []) for request_id in ids]
        if not any(ended):
            raise RuntimeError(f"{NAME} ended no request in {limit_s:.0f} s")
        return Batch(num_generated(ended, lengths) / seconds, ended)


def num_generated(ended: Sequence[list[int]], lengths: Sequence[int]) -> int:
    """Tokens of all requests, of which some have not ended.

    Each step gives every request a token, so those have as many as the longest that has ended: a little less in truth,
    where they were begun later.
    """
    num_steps = max(map(len, ended))
    return sum(min(length, num_steps) for length in lengths)
