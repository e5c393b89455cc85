"""From the steps that an engine took to a `StepModel`: the fit is the one that the operator learns online.

A step log is what an engine writes with `observability.stepLog: Enabled`, one line for each step. It tells nothing of
the size of the KV cache, which is asked for. Two more things count that no step tells: the pause between steps is read
from their times, and what a request takes outside of steps from those that had the engine for themselves.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.seen.steps import StepSample
from capstan_sim.errors import SimulationError
from capstan_sim.step_time import PROFILES, StepModel

_COLUMNS: Final = StepSample._fields


@dataclass(frozen=True, slots=True)
class Fit:
    """A model fitted to `num_steps` steps; `error` is the typical relative error of one step."""

    model: StepModel
    num_steps: int
    error: float

    def around(self, alone: Iterable[tuple[int, float]]) -> "Fit":
        """With what a first token takes beyond its step, of requests that had the engine for themselves: the tokens
        of their prompts, and their TTFT in seconds.
        """
        beyond = [ttft_s - self.model.seconds(prompt, 0, 0, prompt**2 / 2) for prompt, ttft_s in alone]
        return replace(self, model=replace(self.model, outside_s=max(0.0, median(beyond)) if beyond else 0.0))


def fitted(steps: Iterable[StepSample], kv_tokens: int, num_gpus: int = 1) -> Fit:
    """The model of the engine that took `steps`; raises `SimulationError` when they tell too little."""
    steps = tuple(steps)
    model = EngineModel().learn(steps)
    if not model.is_usable:
        raise SimulationError(
            f"{len(steps)} steps are too few or too much alike for a fit: both prefill and decode are needed"
        )
    base_s, prefill_token_s, sequence_s, context_token_s, attention_pair_s = model.coefficients
    found = StepModel(base_s, prefill_token_s, sequence_s, context_token_s, attention_pair_s, kv_tokens, num_gpus)
    # The operator's fit looks past stalls; a simulation without them has to take as long in all as the engine did.
    in_all = sum(step.seconds for step in steps) / sum(found.seconds(*step[3:]) for step in steps)
    slowed = found.slowed(in_all)
    return Fit(replace(slowed, base_s=slowed.base_s + _pause_s(steps)), len(steps), model.error)


def _pause_s(steps: Sequence[StepSample]) -> float:
    """Between the end of a step and the beginning of the next one that goes on with its sequences, in the median."""
    pauses = [
        after.time - after.seconds - before.time
        for before, after in pairwise(steps)
        if after.number == before.number + 1 and after.decode_sequences > 0
    ]
    return max(0.0, median(pauses)) if pauses else 0.0


def read(path: Path) -> list[StepSample]:
    """The steps in a step log; raises `SimulationError`."""
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                raise SimulationError(f"{path} is no step log: its columns must be {', '.join(_COLUMNS)}")
            return [StepSample._make(float(row[name]) for name in _COLUMNS) for row in rows]
    except OSError as error:
        raise SimulationError(f"cannot read the step log {path}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise SimulationError(f"{path}: not every line is a step: {error}") from None


def named(name: str, kv_tokens: int | None) -> StepModel:
    """A built-in profile, a model in a JSON file, or the fit of a step log; `kv_tokens` overrides what they say."""
    if name not in PROFILES and name.endswith(".csv"):
        if kv_tokens is None:
            raise SimulationError(f"step log {name} does not tell how many tokens the KV cache holds; add --kv-tokens")
        return fitted(read(Path(name)), kv_tokens).model
    model = StepModel.named(name)
    return model if kv_tokens is None else model.holding(kv_tokens)
