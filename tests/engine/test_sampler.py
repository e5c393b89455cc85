"""How tokens are chosen: each rule against a naive version, draws against the distribution, rows against each other."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_engine import kernels
from capstan_engine.kernels import Penalties
from capstan_engine.kernels.philox import philox, uniforms
from capstan_engine.kernels.reference.sampling import draw, penalize
from capstan_engine.messages import SamplingParams, TokenLogprobs
from capstan_engine.runner.logprobs import score, token_logprobs
from capstan_engine.runner.sampler import draw_of
from capstan_engine.scheduler.step import ScheduledRequest
from tiny_models import scheduled

V = 150  # more than two chunks of the cumulative sum
NOTHING: dict[str, int] = {}
"""References to tokens of a step before, where there was none."""


def request(prompt: list[int] | None = None, output: list[int] | None = None, **fields: Any) -> ScheduledRequest:
    params = SamplingParams(**{"seed": 0, "max_tokens": 8, **fields})
    prompt, output = prompt or [1], output or []
    last = (prompt + output)[-1:]
    return scheduled(last, start=len(prompt + output) - 1, blocks=[0], prompt=prompt, output=output, params=params)


def sample(logits: torch.Tensor, requests: list[ScheduledRequest]) -> list[int | None]:
    """None where the row is not finite."""
    backend = kernels.choose()
    rules = backend.plan_draws([draw_of(each, NOTHING.__getitem__) for each in requests], backend.new_stage())
    tokens = backend.choose_tokens(logits, rules, torch.empty(0, dtype=torch.int64)).tolist()
    return [token if token >= 0 else None for token in tokens]


def entries_of(logits: torch.Tensor, tokens: list[int], counts: list[int]) -> list[TokenLogprobs]:
    return token_logprobs(score(logits, torch.tensor(tokens), max(counts)), counts)


def random_logits(rows: int = 1, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * scale


def drawn(logits: torch.Tensor, num: int = 4000, **fields: Any) -> Counter[int]:
    """How often each token is chosen over `num` seeds."""
    requests = [request(seed=seed, **fields) for seed in range(num)]
    return Counter(token for token in sample(logits.expand(num, -1), requests) if token is not None)


def naive_distribution(logits: torch.Tensor, **fields: Any) -> dict[int, float]:
    """Temperature, top-k, top-p and min-p as sentences, one token after the other."""
    params = SamplingParams(**{"seed": 0, "max_tokens": 1, **fields})
    weights = {i: math.exp(x / params.temperature) for i, x in enumerate(logits.double().tolist())}
    ranked = sorted(weights, key=lambda i: -weights[i])
    if params.top_k:
        ranked = ranked[: params.top_k]
    total = sum(weights[i] for i in ranked)
    kept, share = [], 0.0
    for i in ranked:
        if share >= params.top_p:
            break
        kept.append(i)
        share += weights[i] / total
    kept = [i for i in kept if weights[i] >= params.min_p * weights[kept[0]]]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


RULES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.03},
]


@pytest.mark.parametrize("fields", RULES, ids=str)
def test_draws_follow_the_distribution_of_the_rules(fields: dict[str, Any]) -> None:
    logits = random_logits(scale=1.5)
    expected = naive_distribution(logits[0], **fields)
    num = 6000
    counts = drawn(logits, num, **fields)
    assert counts.keys() <= expected.keys()
    # Pearson's statistic has mean k and variance 2k for k degrees of freedom; the seeds are fixed.
    pooled = [i for i in expected if expected[i] * num >= 5]
    statistic = sum((counts[i] - expected[i] * num) ** 2 / (expected[i] * num) for i in pooled)
    assert statistic < len(pooled) + 4 * math.sqrt(2 * len(pooled))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([1e-4, 0.3, 1.0, 5.0]),
    top_k=st.integers(0, V + 5),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_only_tokens_that_the_rules_keep_are_drawn(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    fields = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    logits = random_logits(seed=seed)
    (token,) = sample(logits, [request(seed=seed, **fields)])
    weights = torch.softmax(logits[0].double() / temperature, -1)
    share_above = weights[weights > weights[token]].sum().item()
    rank = int((logits[0] > logits[0][token]).sum())
    assert top_k == 0 or rank < top_k
    assert weights[token] >= min_p * weights.max() * (1 - 1e-5)
    if top_k == 0:
        assert share_above < top_p + 1e-6


def test_top_k_of_one_and_temperature_zero_are_greedy() -> None:
    logits = random_logits(20, scale=0.1)
    greedy = logits.argmax(-1).tolist()
    assert sample(logits, [request(temperature=0.0)] * 20) == greedy
    assert sample(logits, [request(top_k=1, seed=seed) for seed in range(20)]) == greedy
    assert sample(logits, [request(top_p=1e-9, seed=seed) for seed in range(20)]) == greedy


def test_top_p_is_exact_where_thousands_of_tokens_share_the_mass() -> None:
    logits = torch.linspace(0, 0.1, 3000).unsqueeze(0)
    tokens = sample(logits.expand(2000, -1), [request(top_p=0.5, seed=seed) for seed in range(2000)])
    weights = torch.softmax(logits[0].double(), -1).flip(0)
    lowest = 3000 - int((weights.cumsum(0) - weights < 0.5).sum())
    assert lowest <= min(token for token in tokens if token is not None) < lowest + 10


def test_a_row_is_chosen_the_same_in_every_batch() -> None:
    logits = random_logits(7)
    requests = [request(seed=9, **rule) for rule in RULES]
    together = sample(logits, requests)
    alone = [sample(logits[i : i + 1], [requests[i]])[0] for i in range(7)]
    reversed_ = sample(logits.flip(0), requests[::-1])[::-1]
    assert together == alone == reversed_


def test_the_position_moves_the_draw_and_the_batch_does_not_remember() -> None:
    logits = torch.zeros(1, V)
    tokens = [sample(logits, [request(output=[0] * n)])[0] for n in range(40)]
    assert len(set(tokens)) > 15
    assert tokens == [sample(logits, [request(output=[0] * n)])[0] for n in range(40)]


@settings(max_examples=50)
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=20),
    output=st.lists(st.integers(0, V - 1), max_size=20),
    repetition=st.sampled_from([1.0, 0.7, 1.3]),
    presence=st.sampled_from([0.0, -0.5, 1.5]),
    frequency=st.sampled_from([0.0, -0.3, 0.8]),
)
def test_penalties_equal_a_naive_loop(
    prompt: list[int], output: list[int], repetition: float, presence: float, frequency: float
) -> None:
    logits = random_logits(seed=len(prompt))[0]
    expected = logits.tolist()
    for token in {*prompt, *output}:
        expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
    for token, count in Counter(output).items():
        expected[token] -= frequency * count + presence
    penalties = Penalties(repetition, presence, frequency, prompt, output)
    penalize(logits, penalties)
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_penalties_and_bias_move_greedy_rows_too_and_leave_the_logits_alone() -> None:
    logits = torch.zeros(4, V)
    logits[:, 5], logits[:, 6] = 2.0, 1.9
    before = logits.clone()
    requests = [
        request(temperature=0.0),
        request(prompt=[5], temperature=0.0, repetition_penalty=1.5),
        request(output=[5], temperature=0.0, presence_penalty=0.5),
        request(temperature=0.0, logit_bias={7: 5.0, 10_000: 99.0}),
    ]
    assert sample(logits, requests) == [5, 6, 6, 7]
    assert torch.equal(logits, before)


def test_stop_ids_cannot_be_drawn_before_min_tokens() -> None:
    logits = torch.zeros(1, V)
    logits[0, 3] = 9.0
    fields = {"min_tokens": 2, "stop_token_ids": (3, 10_000), "temperature": 0.0}
    assert sample(logits, [request(output=[1], **fields)]) != [3]
    assert sample(logits, [request(output=[1, 1], **fields)]) == [3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    logits = random_logits(3)
    expected = sample(logits, [request(temperature=temperature)] * 3)
    logits[1, 30] = bad
    assert sample(logits, [request(temperature=temperature)] * 3) == [expected[0], None, expected[2]]


def test_everything_masked_is_an_error_of_the_row() -> None:
    logits = random_logits()
    every = dict.fromkeys(range(V), -math.inf)
    assert sample(logits, [request(logit_bias=every)]) == [None]


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = torch.tensor([[1000.0, 999.0, -1000.0]])
    assert sample(logits, [request(temperature=1e-30)]) == [0]


def test_the_draw_never_takes_a_token_of_weight_zero() -> None:
    logits = torch.full((1, V), -math.inf)
    logits[0, [0, 20]] = 0.0
    rules = [draw_of(request(seed=seed), NOTHING.__getitem__) for seed in range(300)]
    assert set(draw(logits.expand(300, -1), rules)) == {0, 20}


def test_uniforms_are_even_and_differ_between_seeds_and_positions() -> None:
    seeds, positions = zip(*itertools.product(range(100), repeat=2), strict=True)
    values = uniforms(seeds, positions).tolist()
    assert len(set(values)) == 10_000
    assert all(0 <= value < 1 for value in values)
    counts = Counter(int(value * 20) for value in values)
    assert sum((counts[i] - 500) ** 2 / 500 for i in range(20)) < 19 + 4 * math.sqrt(38)


def test_random_words_are_philoxs() -> None:
    """The known answer of Random123, the authors' own library, for a counter and a key of zeros."""
    words = philox(np.zeros(1, np.uint64), np.zeros(1, np.uint64))[:, 0].tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert uniforms([0], [0]).tolist() == [(words[0] >> 6) / 2**26 + (words[1] >> 6) / 2**52]


def test_uniform_times_any_total_stays_below_the_total() -> None:
    """With 53 bits the largest value times a total could round up to the total itself."""
    assert all((value * 2**52).is_integer() for value in uniforms(range(100), [0] * 100).tolist())
    highest = 1 - 2.0**-52
    assert all(highest * total < total for total in (1.0, 1.0000000000000002, 3.3, 151_936.0, 1e-300))


def test_a_greedy_token_has_exactly_the_largest_log_probability() -> None:
    logits = random_logits(5)
    greedy = logits.argmax(-1).tolist()
    for entry, token in zip(entries_of(logits, greedy, [0, 1, 3, 5, 5]), greedy, strict=True):
        assert entry.ids[0] == token
        assert entry.rank == 1
        assert all(entry.logprobs[0] == value for value in entry.logprobs[1:2])
        assert list(entry.logprobs[1:]) == sorted(entry.logprobs[1:], reverse=True)


def test_log_probabilities_are_of_the_raw_logits_with_ranks() -> None:
    logits = random_logits(2, seed=4)
    expected = torch.log_softmax(logits.double(), -1)
    entries = entries_of(logits, [11, 42], [2, V + 10])
    assert [len(entry.ids) for entry in entries] == [3, V + 1]
    for row, entry in enumerate(entries):
        for token, value in zip(entry.ids, entry.logprobs, strict=True):
            assert value == pytest.approx(expected[row, token].item(), abs=1e-5)
        assert entry.rank == int((expected[row] > expected[row, entry.ids[0]]).sum()) + 1
