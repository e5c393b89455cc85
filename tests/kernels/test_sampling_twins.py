"""Tokens chosen in Triton against those of plain torch: the same ones, from the same random numbers."""

import math
from typing import Any

import pytest
import torch

from capstan_engine.kernels import Draw, Penalties, reference, triton
from capstan_engine.kernels.reference import sampling as reference_sampling
from capstan_engine.kernels.triton.logits import adjusted
from capstan_engine.kernels.triton.machine import DEVICE

GREEDY = Draw(0.0, 0, 1.0, 0.0, 0, 0, None, {})
PLAIN = GREEDY._replace(temperature=1.0)
NOTHING = torch.zeros(0, dtype=torch.int64)
"""Tokens of a step before, where nothing refers to one."""

RULES = [
    GREEDY,
    PLAIN,
    PLAIN._replace(temperature=0.3),
    PLAIN._replace(temperature=1e-30),
    PLAIN._replace(top_k=1),
    PLAIN._replace(top_k=5),
    PLAIN._replace(top_k=10_000),
    PLAIN._replace(top_p=0.6),
    PLAIN._replace(top_p=1e-9),
    PLAIN._replace(min_p=0.1),
    PLAIN._replace(temperature=1.7, top_k=40, top_p=0.8, min_p=0.01),
]


def chosen(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    return triton.choose_tokens(logits.to(DEVICE), staged(draws), NOTHING.to(DEVICE)).tolist()


def expected(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    return reference.choose_tokens(logits, draws, NOTHING).tolist()


def staged(draws: list[Draw]) -> triton.TritonDraws:
    stage = triton.new_stage()
    rules = triton.plan_draws(draws, stage)
    stage.send()
    return rules


@pytest.mark.parametrize("vocab", [7, 300])
def test_every_rule_chooses_the_references_token(vocab: int, generator: torch.Generator) -> None:
    draws = [rules._replace(seed=seed, position=seed % 3) for rules in RULES for seed in (3, -1, 2**63 + 11)]
    logits = torch.randn(len(draws), vocab, generator=generator) * 3
    assert chosen(logits, draws) == expected(logits, draws)


def test_rows_of_several_blocks(generator: torch.Generator) -> None:
    draws = [rules._replace(seed=8) for rules in (GREEDY, PLAIN, PLAIN._replace(top_k=4000, top_p=0.9))]
    logits = torch.randn(len(draws), 9001, generator=generator)
    assert chosen(logits, draws) == expected(logits, draws)


def test_16_bit_logits_with_many_ties(generator: torch.Generator) -> None:
    """Ties are kept together, and of equally likely ones the first is the most likely."""
    draws = [rules._replace(seed=seed) for rules in (GREEDY, PLAIN._replace(top_k=3)) for seed in range(8)]
    logits = torch.randint(-2, 3, (len(draws), 90), generator=generator).to(torch.float16)
    assert chosen(logits, draws) == expected(logits, draws)


@pytest.mark.parametrize(
    ("rules", "num_kept"),
    [({"top_k": 5}, 5), ({"top_p": 0.25}, 9), ({"top_k": 12, "top_p": 0.5}, 6), ({"min_p": 0.955}, 5)],
)
def test_of_almost_equal_tokens_exactly_those_that_the_rules_keep_are_drawn(
    rules: dict[str, Any], num_kept: int
) -> None:
    logits = (-torch.arange(40) / 100).repeat(80, 1)
    draws = [PLAIN._replace(seed=seed, **rules) for seed in range(80)]
    tokens = chosen(logits, draws)
    assert tokens == expected(logits, draws)
    assert set(tokens) == set(range(num_kept))


def test_penalties_and_biases_change_what_the_references_do(generator: torch.Generator) -> None:
    def ids(num: int) -> list[int]:
        return torch.randint(0, 60, (num,), generator=generator).tolist()

    draws = [
        PLAIN._replace(penalties=Penalties(1.8, 0.0, 0.0, ids(30), ids(20))),
        PLAIN._replace(penalties=Penalties(0.6, 0.0, 0.0, ids(30), [])),
        PLAIN._replace(penalties=Penalties(1.0, 1.5, 0.7, ids(9), ids(50)), bias={3: 2.0, 10**6: 9.0}),
        PLAIN._replace(bias={4: 3.0, 5: -math.inf, -7: 9.0}),
        PLAIN,
    ]
    logits = torch.randn(len(draws), 60, generator=generator).to(torch.float16)
    wanted = logits.float()
    for row, rules in zip(wanted, draws, strict=True):
        if rules.penalties is not None:
            reference_sampling.penalize(row, rules.penalties)
        for token_id, value in rules.bias.items():
            if 0 <= token_id < 60:
                row[token_id] += value
    before = logits.clone()
    changes = staged(draws).changes
    assert changes is not None
    torch.testing.assert_close(adjusted(logits.to(DEVICE), changes, NOTHING.to(DEVICE)).cpu(), wanted)
    assert torch.equal(logits, before)


def test_penalties_and_biases_are_drawn_with(generator: torch.Generator) -> None:
    penalties = Penalties(1.3, 0.5, 0.2, [0, 1, 2, 2], [3, 4, 3])
    draws = [PLAIN._replace(seed=seed, penalties=penalties, bias={5: 1.0}) for seed in range(6)] + [PLAIN, GREEDY]
    logits = torch.randn(len(draws), 12, generator=generator)
    assert chosen(logits, draws) == expected(logits, draws)


@pytest.mark.parametrize("rules", [GREEDY, PLAIN], ids=["greedy", "drawn"])
def test_a_row_that_is_not_finite_fails_alone(rules: Draw, generator: torch.Generator) -> None:
    logits = torch.randn(5, 40, generator=generator)
    logits[1, 7], logits[2, 39], logits[3] = math.nan, math.inf, -math.inf
    tokens = chosen(logits, [rules] * 5)
    assert tokens[1:4] == [-1, -1, -1]
    assert tokens == expected(logits, [rules] * 5)


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.full((40, 30), -math.inf)
    logits[:, [0, 20]] = 0.0
    assert set(chosen(logits, [PLAIN._replace(seed=seed) for seed in range(40)])) == {0, 20}


def test_a_row_is_chosen_the_same_in_every_batch(generator: torch.Generator) -> None:
    draws = [rules._replace(seed=9) for rules in RULES]
    logits = torch.randn(len(draws), 50, generator=generator)
    together = chosen(logits, draws)
    assert together == [chosen(logits[i : i + 1], draws[i : i + 1])[0] for i in range(len(draws))]


def test_penalties_know_a_token_that_is_on_the_device_only(generator: torch.Generator) -> None:
    """The last of the output stands for one that the step before drew; one that could not be drawn counts nothing."""
    drawn = torch.tensor([9, 4, -1])
    known = Penalties(1.7, 0.8, 0.6, [1, 2, 11], [4, 5, 4])
    draws = [
        PLAIN._replace(seed=seed, penalties=known._replace(output=[4, 5, reference_to]))
        for reference_to in (-2, -3)
        for seed in range(8)
    ]
    same = [
        PLAIN._replace(seed=seed, penalties=known._replace(output=output))
        for output in ([4, 5, 4], [4, 5])
        for seed in range(8)
    ]
    logits = torch.randn(len(draws), 12, generator=generator)
    assert reference.choose_tokens(logits, draws, drawn).tolist() == expected(logits, same)
    tokens = triton.choose_tokens(logits.to(DEVICE), staged(draws), drawn.to(DEVICE)).tolist()
    assert tokens == expected(logits, same)
