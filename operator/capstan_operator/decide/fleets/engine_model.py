"""How long a step takes: seconds = a + b·prefill tokens + c·decoding sequences + d·context tokens + e·attention pairs.

Learns online from the engines' own step samples. Knows nothing of SLOs or replicas.

Weighted least squares on normal equations that forget, with every coefficient held at zero or above (a step does not
get shorter by doing more). Samples weigh by the inverse square of the predicted time, because jitter grows with the
step, and those far off the prediction are pulled in (Huber, 1964), so that one garbage collection does not bend the
model while a lasting change still does. The surprising idea: it forgets by time spent *computing*, so that an idle
night teaches it nothing and costs it nothing.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from capstan_operator.decide.curve import Array, everywhere
from capstan_operator.decide.seen.steps import StepSample
from capstan_operator.decide.values import Value

MEMORY_S = 180.0
"""Seconds of computing after which a sample weighs 1/e."""
_ENOUGH_SAMPLES = 32
_HUBER_ERRORS = 3.0
_SMALLEST_ERROR = 0.03
# Shares what collinear features explain evenly between them; four digits below what the data says otherwise.
_RIDGE = 1e-4
_ERROR_SHARE = 0.02
_FIRST_BATCH: Final = 32
_BATCH: Final = 128
_NUM_FEATURES = 5
# Seconds, and the counts of a step: what is not between the two is damage or malice.
_LEAST: Final[Array] = np.array([[1e-6], [0], [0], [0], [0]])
_TOO_MUCH: Final[Array] = np.array([[600], [1e9], [1e9], [1e9], [1e9]])
_USUAL: Final = (1.0, 256.0, 16.0, 16_000.0, 131_072.0)
"""Features of a step as they come: what a given model is taken to have been measured with."""
_GIVEN_ERROR: Final = 0.1
_ZEROS = (0.0,) * _NUM_FEATURES


class EngineModel(Value):
    """The fitted coefficients with the sums that they come from."""

    coefficients: tuple[float, ...] = _ZEROS
    """a, b, c, d, e in seconds per unit."""
    gram: tuple[tuple[float, ...], ...] = (_ZEROS,) * _NUM_FEATURES
    moment: tuple[float, ...] = _ZEROS
    num_samples: float = 0
    """Effective number: forgotten samples count less."""
    error: float = 0.5
    """Typical relative error of a prediction."""

    @classmethod
    def given(cls, coefficients: tuple[float, ...]) -> "EngineModel":
        """A model that was measured elsewhere: of use at once, and soon outweighed by what these engines tell.

        It counts as if one usual step had told each coefficient by itself.
        """
        weight = 1 / max(_dot(coefficients, _USUAL), 1e-5) ** 2
        gram = [[weight * f**2 if i == j else 0.0 for j in range(_NUM_FEATURES)] for i, f in enumerate(_USUAL)]
        return cls(
            coefficients=coefficients,
            gram=tuple(map(tuple, gram)),
            moment=tuple(gram[i][i] * coefficient for i, coefficient in enumerate(coefficients)),
            num_samples=_ENOUGH_SAMPLES,
            error=_GIVEN_ERROR,
        )

    @property
    def is_usable(self) -> bool:
        """Whether it has seen enough, prefill and decode both, to be steered by."""
        saw_prefill, saw_decode = self.gram[1][1] > 0, self.gram[2][2] > 0
        # Among noise and short chunks, attention's share may be all that is told of a prefill token's cost.
        costs_prefill = self.prefill_token_seconds(1) > 0
        return self.num_samples >= _ENOUGH_SAMPLES and saw_prefill and saw_decode and costs_prefill

    def step_seconds(self, prefill_tokens: float, sequences: float, context: float, pairs: float = 0) -> float:
        """Predicted duration of a step; `context` is the sum over the decoding sequences."""
        return _dot(self.coefficients, (1.0, prefill_tokens, sequences, context, pairs))

    def prefill_token_seconds(self, prompt_tokens: float) -> float:
        """Cost of one more prefill token of a prompt of this length, its mean attention included."""
        return self.coefficients[1] + self.coefficients[4] * prompt_tokens / 2

    def sequence_seconds(self, context: float) -> float:
        """Cost of one more decoding sequence with this context."""
        return self.coefficients[2] + self.coefficients[3] * context

    def learn(self, samples: Sequence[StepSample] | Array) -> "EngineModel":
        """The model after these samples, or rows [N, 7] of such; unbelievable ones are left out."""
        # The number of a step and its time say nothing of its cost.
        steps = np.asarray(samples, dtype=np.float64).reshape(-1, 2 + _NUM_FEATURES)[:, 2:]
        columns = steps.T.copy()
        within, computes = (columns >= _LEAST) & (columns < _TOO_MUCH), columns[1] + columns[2] > 0
        is_sane = everywhere(within) and everywhere(computes)
        sane = computes if is_sane else computes & np.logical_and.reduce(within)
        model = self
        while len(steps):
            # How far a model is off can only be told of one that predicts: the sooner, the better.
            size = _BATCH if model.is_usable else _FIRST_BATCH
            if len(batch := steps[:size] if is_sane else steps[:size][sane[:size]]):
                model = model._after(batch)
            steps, sane = steps[size:], sane[size:]
        return model

    def _after(self, steps: Array) -> "EngineModel":
        """The model after one batch, small enough for its predictions to be those of the model before it.

        `steps` is [N, 5]: seconds, then what was computed in them.
        """
        seconds, features = steps[:, 0].copy(), steps.copy()
        features[:, 0] = 1.0
        is_usable = self.is_usable
        predicted = features @ self.coefficients if is_usable else seconds
        scale = np.maximum(np.maximum(predicted, seconds / 10), 1e-5)
        off = np.abs(seconds - predicted) / scale
        trusted = _HUBER_ERRORS * max(self.error, _SMALLEST_ERROR)
        total_s = np.add.reduce(seconds)
        kept = np.exp((seconds.cumsum() - total_s) / MEMORY_S)
        weight = np.minimum(1.0, trusted / np.maximum(off, 1e-12)) / scale**2 * kept
        all_kept = float(np.exp(-total_s / MEMORY_S))
        gram = (all_kept * np.array(self.gram) + (features * weight[:, None]).T @ features).tolist()
        moment = (all_kept * np.array(self.moment) + features.T @ (weight * seconds)).tolist()
        error = self.error
        if is_usable:
            share = 1 - (1 - _ERROR_SHARE) ** len(off)
            error += share * (float(np.add.reduce(np.minimum(off, 1.0))) / len(off) - error)
        return EngineModel.made(
            coefficients=_fitted(gram, moment),
            gram=tuple(map(tuple, gram)),
            moment=tuple(moment),
            num_samples=all_kept * self.num_samples + float(np.add.reduce(kept)),
            error=error,
        )


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum([x * y for x, y in zip(a, b, strict=True)])


def _fitted(gram: Sequence[Sequence[float]], moment: Sequence[float]) -> tuple[float, ...]:
    """Non-negative least squares, exactly: of all subsets of features whose own solution has no negative
    coefficient, the one that explains most.

    Branch and bound: no part of a set explains more than the set does, and where a set's own solution has negative
    coefficients, at least one of those features has to go. With all features welcome, one system is solved.
    """
    scales = [math.sqrt(gram[i][i]) for i in range(_NUM_FEATURES)]
    best, explained = dict[int, float](), 0.0
    seen = frozenset(i for i in range(_NUM_FEATURES) if scales[i] > 0)
    open_sets, met = [seen], {seen}
    while open_sets:
        subset = sorted(open_sets.pop())
        # Scaled to ones on the diagonal, because seconds per step and per pair differ by many digits.
        matrix = [[gram[i][j] / (scales[i] * scales[j]) for j in subset] for i in subset]
        for place, row in enumerate(matrix):
            row[place] += _RIDGE
        target = [moment[i] / scales[i] for i in subset]
        solution = _solved(matrix, target[:])
        if (gain := _dot(solution, target)) <= explained:
            continue
        if min(solution) >= 0:
            best, explained = dict(zip(subset, solution, strict=True)), gain
            continue
        unwelcome = [i for i, coefficient in zip(subset, solution, strict=True) if coefficient < 0]
        smaller = {frozenset(subset) - {i} for i in unwelcome} - met
        met |= smaller
        open_sets += sorted(smaller, key=sorted)
    return tuple([best.get(i, 0.0) / scales[i] if scales[i] > 0 else 0.0 for i in range(_NUM_FEATURES)])


def _solved(matrix: list[list[float]], target: list[float]) -> list[float]:
    """The solution of a small positive definite system, by elimination in place."""
    size = len(target)
    for pivot, upper in enumerate(matrix):
        later = range(pivot + 1, size)
        for row in later:
            lower = matrix[row]
            factor = lower[pivot] / upper[pivot]
            target[row] -= factor * target[pivot]
            for column in later:
                lower[column] -= factor * upper[column]
    solution = [0.0] * size
    for row in reversed(range(size)):
        upper, known = matrix[row], 0.0
        for column in range(row + 1, size):
            known += upper[column] * solution[column]
        solution[row] = (target[row] - known) / upper[row]
    return solution
