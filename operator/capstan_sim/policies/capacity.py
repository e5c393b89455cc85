"""What one replica can carry, by the true step model and the mean lengths of the whole trace.

No operator in the field knows these so well: the peers are given the profile that their documents ask for, so that a
miss is the law's and not its calibration's. Knows nothing of arrivals or fleets. The surprising idea: all peers that
need "the load of one replica" take it from one place, so that they differ in their laws only.
"""

from bisect import bisect_left

from capstan_sim.policy import Setting


class Capacity:
    """One replica that serves equal requests of the mean lengths: I prompt tokens, O output tokens."""

    def __init__(self, setting: Setting) -> None:
        self._model = setting.model
        self._objective = setting.objective
        self._limits = setting.limits
        self.mean_prompt = setting.mean_prompt
        self.mean_output = setting.mean_output
        self.mean_context = setting.mean_prompt + setting.mean_output / 2
        """KV tokens of a request, halfway through its output."""

    def step_s(self, prefill_tokens: float, batch: float) -> float:
        """Duration of a step that prefills so many tokens and decodes `batch` requests."""
        return self._model.seconds(prefill_tokens, batch, batch * self.mean_context, 0)

    def steady_step_s(self, batch: float) -> float:
        """Duration of a step at a steady batch: the prefill that replaces the finishing requests rides along."""
        return self.step_s(self.riding_prefill_tokens(batch), batch)

    def riding_prefill_tokens(self, batch: float) -> float:
        """Prompt tokens per step that keep the batch steady, at most the token budget."""
        return min(batch * self.mean_prompt / self.mean_output, self._limits.max_batched_tokens)

    def ttft_s(self, queued_tokens: float, batch: float) -> float:
        """Time to prefill what is queued and then one prompt, in steps of the full token budget, beside the batch."""
        budget = self._limits.max_batched_tokens
        full_steps, rest = divmod(queued_tokens + self.mean_prompt, budget)
        return full_steps * self.step_s(budget, batch) + (self.step_s(rest, batch) if rest else 0.0)

    def prefill_velocity(self) -> float:
        """Prompt tokens per second in steps of the full budget and nothing else, attention at mean depth included."""
        budget = self._limits.max_batched_tokens
        return budget / self._model.seconds(budget, 0, 0, budget * self.mean_prompt / 2)

    def decode_velocity(self) -> float:
        """Output tokens per second of the largest batch that decodes within the TPOT objective."""
        batch = self.largest_decode_batch()
        return batch / self.step_s(0, batch)

    def largest_batch(self) -> int:
        """Most requests in decode that one replica keeps within both objectives, at least 1.

        Bounded by the KV cache and the running limit. As in the documents of those who use it, the attention of the
        prefill is left out and its tokens per step end at the budget, so that long prompts flatter it.
        """
        ceiling = int(min(self._model.kv_tokens / self.mean_context, self._limits.max_sequences))
        return max(1, bisect_left(range(1, ceiling + 1), True, key=self._is_late))

    def largest_decode_batch(self) -> int:
        """Most requests that decode within the TPOT objective when nothing is prefilled, at least 1."""
        ceiling = int(min(self._model.kv_tokens / self.mean_context, self._limits.max_sequences))
        return max(
            1, bisect_left(range(1, ceiling + 1), True, key=lambda n: self.step_s(0, n) > self._objective.tpot_s)
        )

    def request_rate(self, batch: int) -> float:
        """Requests per second of a replica that keeps `batch` requests in decode (Little's law)."""
        return batch / (self.mean_output * self.steady_step_s(batch))

    def _is_late(self, batch: int) -> bool:
        queued = batch * self.mean_prompt / self.mean_output
        in_time = self.ttft_s(queued, batch) <= self._objective.ttft_s
        return not in_time or self.steady_step_s(batch) > self._objective.tpot_s
