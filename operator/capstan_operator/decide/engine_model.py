"""How long a step takes: seconds = a + b·prefill tokens + c·decoding sequences + d·context tokens + e·attention pairs.

Learns online from the engines' own step samples. Knows nothing of SLOs or replicas.

Weighted least squares on normal equations that forget, with every coefficient held at zero or above (a step does not
get shorter by doing more). Samples weigh by the inverse square of the predicted time, because jitter grows with the
step, and those far off the prediction are pulled in (Huber, 1964), so that one garbage collection does not bend the
model while a lasting change still does. The surprising idea: it forgets by time spent *computing*, so that an idle
night teaches it nothing and costs it nothing.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from capstan_operator.decide.observation import StepSample, believable
from capstan_operator.decide.values import Value

MEMORY_S = 180.0
"""Seconds of computing after which a sample weighs 1/e."""
_ENOUGH_SAMPLES = 32
_HUBER_ERRORS = 3.0
_SMALLEST_ERROR = 0.03
# Shares what collinear features explain evenly between them; four digits below what the data says otherwise.
_RIDGE = 1e-4
_ERROR_SHARE = 0.02
_BATCH = 64
_NUM_FEATURES = 5
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

    @property
    def is_usable(self) -> bool:
        """Whether it has seen enough, prefill and decode both, to be steered by."""
        saw_prefill, saw_decode = self.gram[1][1] > 0, self.gram[2][2] > 0
        return self.num_samples >= _ENOUGH_SAMPLES and saw_prefill and saw_decode and self.coefficients[1] > 0

    def step_seconds(self, prefill_tokens: float, sequences: float, context: float, pairs: float = 0) -> float:
        """Predicted duration of a step; `context` is the sum over the decoding sequences."""
        return _dot(self.coefficients, (1.0, prefill_tokens, sequences, context, pairs))

    def prefill_token_seconds(self, prompt_tokens: float) -> float:
        """Cost of one more prefill token of a prompt of this length, its mean attention included."""
        return self.coefficients[1] + self.coefficients[4] * prompt_tokens / 2

    def sequence_seconds(self, context: float) -> float:
        """Cost of one more decoding sequence with this context."""
        return self.coefficients[2] + self.coefficients[3] * context

    def learn(self, samples: Iterable[StepSample]) -> "EngineModel":
        """The model after these samples; unbelievable ones are left out."""
        sane = [sample for sample in samples if _is_sane(sample)]
        model = self
        for start in range(0, len(sane), _BATCH):
            model = model._after(sane[start : start + _BATCH])
        return model

    def _after(self, samples: Sequence[StepSample]) -> "EngineModel":
        """The model after one batch, small enough for its predictions to be those of the model before it."""
        gram = [list(row) for row in self.gram]
        moment = list(self.moment)
        num_samples, error = self.num_samples, self.error
        for sample in samples:
            features = (1.0, *(float(x) for x in sample[3:]))
            predicted = _dot(self.coefficients, features) if self.is_usable else sample.seconds
            scale = max(predicted, sample.seconds / 10, 1e-5)
            off = abs(sample.seconds - predicted) / scale
            trust = min(1.0, _HUBER_ERRORS * max(error, _SMALLEST_ERROR) / off) if off > 0 else 1.0
            weight, kept = trust / scale**2, math.exp(-min(sample.seconds, MEMORY_S) / MEMORY_S)
            for i, x in enumerate(features):
                moment[i] = moment[i] * kept + weight * x * sample.seconds
                for j, y in enumerate(features):
                    gram[i][j] = gram[i][j] * kept + weight * x * y
            num_samples = num_samples * kept + 1
            if self.is_usable:
                error += _ERROR_SHARE * (min(off, 1.0) - error)
        return EngineModel(
            coefficients=_fitted(gram, moment),
            gram=tuple(tuple(row) for row in gram),
            moment=tuple(moment),
            num_samples=num_samples,
            error=error,
        )


def _is_sane(sample: StepSample) -> bool:
    worked = sample.prefill_tokens + sample.decode_sequences > 0
    return believable(*sample) and 1e-6 < sample.seconds < 600 and worked and max(sample[3:6]) < 1e9


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _fitted(gram: Sequence[Sequence[float]], moment: Sequence[float]) -> tuple[float, ...]:
    """Non-negative least squares, exactly: of all subsets of features whose own solution has no negative
    coefficient, the one that explains most. With five features there are 31, and no iteration that might not end.
    """
    scales = [math.sqrt(gram[i][i]) for i in range(_NUM_FEATURES)]
    seen = [i for i in range(_NUM_FEATURES) if scales[i] > 0]
    best, explained = dict.fromkeys(seen, 0.0), 0.0
    for size in range(1, len(seen) + 1):
        for subset in combinations(seen, size):
            # Scaled to ones on the diagonal, because seconds per step and per pair differ by many digits.
            matrix = [[gram[i][j] / (scales[i] * scales[j]) + _RIDGE * (i == j) for j in subset] for i in subset]
            target = [moment[i] / scales[i] for i in subset]
            solution = _solved(matrix, target[:])
            if min(solution) >= 0 and (gain := _dot(solution, target)) > explained:
                best, explained = dict(zip(subset, solution, strict=True)), gain
    return tuple(best.get(i, 0.0) / scales[i] if scales[i] > 0 else 0.0 for i in range(_NUM_FEATURES))


def _solved(matrix: list[list[float]], target: list[float]) -> list[float]:
    """The solution of a small positive definite system, by elimination in place."""
    size = len(target)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            target[row] -= factor * target[pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = _dot(matrix[row][row + 1 :], solution[row + 1 :])
        solution[row] = (target[row] - known) / matrix[row][row]
    return solution
