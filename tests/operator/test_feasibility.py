"""A doubt is right, and the spec that it names is free of it; what is certain is only what an engine would refuse."""

import re
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW, deployment, learnt, observation, replica, taught

from capstan_api.spec import InferenceDeploymentSpec
from capstan_operator.decide import decide, render
from capstan_operator.decide.feasibility import Doubt, Pace, Told, doubts, have_one_pace, model_key
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.seen.signals import Lengths
from capstan_operator.decide.seen.steps import StepSample
from memory_figures import FIGURES

PACE = Pace(model=taught(), lengths=Lengths(prompt=200, output=50, weight=100))
UNKNOWN = Pace()


def spec(**changes: Any) -> InferenceDeploymentSpec:
    """4096 tokens in 512 MiB of KV cache (8192 slots), in a replica of 4 GiB; overridden by field."""
    return deployment(**changes).spec


def envelope(
    *, length: int = 4096, kv: int | None = 512, memory: int = 4096, sequences: int = 32, tokens: int = 1024
) -> InferenceDeploymentSpec:
    return spec(
        model={"source": {"uri": "bundled://tiny"}, "maxModelLength": length},
        variants=[{"name": "default", "resources": {"memoryMebibytes": memory}}],
        engine={
            "kvCache": {"memoryMebibytes": kv},
            "batching": {"maxSequences": sequences, "maxBatchedTokens": tokens, "minSequences": 1},
        },
    )


def only(found: tuple[Doubt, ...]) -> Doubt:
    [doubt] = found
    return doubt


def test_nothing_speaks_against_a_spec_of_which_nothing_is_known() -> None:
    assert doubts(envelope(length=10_000_000, kv=1, memory=64), None, UNKNOWN) == ()


def test_a_spec_with_room_raises_no_doubt() -> None:
    assert doubts(envelope(), FIGURES, PACE) == ()


def test_a_length_beyond_the_models_own_names_that() -> None:
    doubt = only(doubts(envelope(length=40_000, kv=4096, memory=16_384), FIGURES, UNKNOWN))
    assert str(doubt) == "spec.model.maxModelLength: 40000 exceeds the positions of the model; 32768 is the most"
    assert doubt.is_certain


def test_a_request_that_outgrows_the_cache_names_the_length_and_the_cache_that_fit() -> None:
    doubt = only(doubts(envelope(length=10_000), FIGURES, UNKNOWN))
    assert doubt.field == "spec.model.maxModelLength"
    assert "does not fit into the 8192 slots" in doubt.sentence
    assert doubt.is_certain
    [(shorter, larger)] = re.findall(r"maxModelLength (\d+) fits, or \S+\.memoryMebibytes of (\d+)", doubt.sentence)
    assert doubts(envelope(length=int(shorter)), FIGURES, UNKNOWN) == ()
    assert doubts(envelope(length=int(shorter) + 1), FIGURES, UNKNOWN) != ()
    assert doubts(envelope(length=10_000, kv=int(larger)), FIGURES, UNKNOWN) == ()
    assert doubts(envelope(length=10_000, kv=int(larger) - 1), FIGURES, UNKNOWN) != ()


def test_what_fits_is_what_both_the_model_and_the_cache_allow() -> None:
    positions, memory = doubts(envelope(length=40_000), FIGURES, UNKNOWN)
    assert positions.sentence.endswith("32768 is the most")
    assert "maxModelLength 8192 fits, or engine.kvCache.memoryMebibytes of 2048" in memory.sentence


def test_the_memory_of_a_device_is_not_bounded_by_that_of_the_container() -> None:
    asked = envelope(memory=600)
    assert doubts(asked, FIGURES, UNKNOWN) != ()
    assert doubts(asked, FIGURES.model_copy(update={"on_device": True}), UNKNOWN) == ()


def test_a_cache_without_one_whole_block_names_no_length() -> None:
    huge = FIGURES.model_copy(update={"kv_token": 1 << 20})
    doubt = only(doubts(envelope(length=16, kv=8), huge, UNKNOWN))
    assert "fits" not in doubt.sentence.replace("not fit", "")
    assert "engine.kvCache.memoryMebibytes of 16" in doubt.sentence


def test_a_cache_without_a_size_is_judged_by_what_the_rest_leaves() -> None:
    assert doubts(envelope(kv=None), FIGURES, UNKNOWN) == ()
    doubt = only(doubts(envelope(kv=None, memory=600), FIGURES, UNKNOWN))
    assert doubt.field == "spec.variants[default].resources"
    assert doubt.is_certain
    [enough] = re.findall(r"to at least (\d+)", doubt.sentence)
    assert doubts(envelope(kv=None, memory=int(enough)), FIGURES, UNKNOWN) == ()
    assert doubts(envelope(kv=None, memory=int(enough) - 1), FIGURES, UNKNOWN) != ()


def test_what_is_left_on_a_device_is_not_known_before_an_engine_starts() -> None:
    on_device = FIGURES.model_copy(update={"on_device": True})
    assert doubts(envelope(kv=None, memory=64, length=16, sequences=512), on_device, UNKNOWN) == ()


def test_more_sequences_than_blocks_are_only_worth_a_warning() -> None:
    doubt = only(doubts(envelope(length=16, kv=16, sequences=32), FIGURES, UNKNOWN))
    assert doubt.field == "spec.engine.batching.maxSequences"
    assert "16 blocks" in doubt.sentence
    assert not doubt.is_certain


@given(
    length=st.integers(16, 32_768),
    kv=st.integers(1, 4096),
    memory=st.integers(64, 16_384),
    sequences=st.integers(1, 512),
    tokens=st.integers(512, 8192),
)
def test_without_a_certain_doubt_everything_fits_and_with_one_something_does_not(
    length: int, kv: int, memory: int, sequences: int, tokens: int
) -> None:
    if memory <= kv:
        memory += kv
    asked = envelope(length=length, kv=kv, memory=memory, sequences=sequences, tokens=tokens)
    slots = (kv << 20) // (16 * FIGURES.kv_token) * 16
    needed = (
        FIGURES.weights + length * 512 + (kv << 20) + FIGURES.processes
        + max(6 << 20, tokens * 18_432 + length * 3072 + sequences * 81_920 + (kv << 20) // 6)
    )  # fmt: skip
    fits = slots >= length and needed <= memory << 20
    assert any(doubt.is_certain for doubt in doubts(asked, FIGURES, PACE)) is not fits


@pytest.mark.parametrize(
    ("source", "is_certain"),
    [
        ({"uri": "bundled://tiny"}, True),
        ({"uri": "hf://org/model", "revision": "0f" * 20}, True),
        ({"uri": "hf://org/model", "revision": "main"}, False),
        ({"uri": "hf://org/model"}, False),
        ({"uri": "s3://bucket/model", "digest": "sha256:" + "0f" * 32}, True),
        ({"uri": "s3://bucket/model"}, False),
        ({"uri": "oci://registry.example/model@sha256:" + "0f" * 32}, True),
        ({"uri": "oci://registry.example/model:latest"}, False),
        ({"uri": "pvc://models/llama"}, False),
        ({"uri": "file:///models/llama"}, False),
    ],
)
def test_memory_is_certain_only_where_the_address_always_gives_the_same_model(
    source: dict[str, str], is_certain: bool
) -> None:
    asked = spec(model={"source": source, "maxModelLength": 10_000})
    assert only(doubts(asked, FIGURES, UNKNOWN)).is_certain is is_certain


def test_thresholds_that_one_request_alone_misses_name_some_that_it_meets() -> None:
    strict = [{"name": "chat", "ttft": {"thresholdMilliseconds": 20}, "tpot": {"thresholdMilliseconds": 3}}]
    found = {doubt.field: doubt for doubt in doubts(spec(slos=strict), None, PACE)}
    assert set(found) == {
        "spec.slos[chat].ttft.thresholdMilliseconds",
        "spec.slos[chat].tpot.thresholdMilliseconds",
    }
    assert not any(doubt.is_certain for doubt in found.values())
    nearest = {
        field.split(".")[2]: {"thresholdMilliseconds": int(re.findall(r"(\d+) could be met", doubt.sentence)[0])}
        for field, doubt in found.items()
    }
    assert doubts(spec(slos=[{"name": "chat", **nearest}]), None, PACE) == ()


def test_a_first_token_takes_as_many_steps_as_its_prompt_has_chunks() -> None:
    # A step costs 4 ms, a prefill token 0.2 ms.
    assert PACE.first_token_s(1024) == pytest.approx(0.004 + 200 * 0.0002, rel=0.02)
    assert PACE.first_token_s(64) == pytest.approx(4 * 0.004 + 200 * 0.0002, rel=0.02)


@pytest.mark.parametrize(("busy", "few", "many"), [(0.0, 24, 200), (0.3, 60, 3000)])
def test_the_busier_the_machine_the_more_steps_are_seen_before_there_is_a_doubt(
    busy: float, few: int, many: int
) -> None:
    strict = spec(slos=[{"name": "chat", "tpot": {"thresholdMilliseconds": 1}}])
    assert doubts(strict, None, paced(few, busy)) == ()
    [doubt] = doubts(strict, None, paced(many, busy))
    [met_ms] = map(int, re.findall(r"(\d+) could be met", doubt.sentence))
    # 5 ms a step of its own, or 13 with what held it up, and room.
    assert 6 <= met_ms <= 20


def paced(num_steps: int, busy: float) -> Pace:
    """Learnt from so many steps, one request at a time, of which a share `busy` was held up to ten times as long."""
    random, model = Random(0), EngineModel()
    for number in range(num_steps):
        is_prefill = number % 12 == 0
        seconds = 0.005 * (random.uniform(2, 10) if random.random() < busy else random.uniform(0.9, 1.2))
        counts = (40, 0, 0, 800) if is_prefill else (0, 1, 50, 0)
        model = model.learn([StepSample(number, NOW, seconds, *counts)])
    return Pace(model=model, lengths=Lengths(prompt=40, output=20, weight=100))


def test_models_are_the_same_when_engines_hold_the_same_numbers() -> None:
    base = spec()
    declared = dict.fromkeys(("base", "prefillToken", "sequence"), 1)
    step_time = {f"{name}Nanoseconds": cost for name, cost in declared.items()}
    step_time |= {"contextTokenPicoseconds": 1, "attentionPairPicoseconds": 1}
    for same in (
        envelope(length=64),
        spec(variants=[{"name": "other", "costPerHour": "3"}]),
        spec(variants=[{"name": "default", "stepTime": step_time}]),
    ):
        assert model_key(same) == model_key(base)
    for other in (
        spec(variants=[{"name": "default", "precision": "Float32"}]),
        spec(model={"source": {"uri": "bundled://other"}}),
    ):
        assert model_key(other) != model_key(base)
        assert not have_one_pace(other, base)
    assert have_one_pace(envelope(length=64), base)
    assert not have_one_pace(spec(variants=[{"name": "default", "resources": {"cpuMillicores": 4000}}]), base)
    assert not have_one_pace(spec(scheduling={"nodeSelector": {"gpu": "a"}}), base)


def test_what_an_engine_tells_of_its_model_is_remembered_over_a_restart() -> None:
    of = deployment()
    told = decide(of, observation(of, replica(of, figures=FIGURES)), learnt(of), NOW).memory
    assert told.told == Told(of=model_key(of.spec), figures=FIGURES)
    later = decide(of, observation(of, replica(of)), Memory.restored(told.durable()), NOW + 1).memory
    assert later.told == told.told


def test_engines_of_another_revision_tell_nothing_of_this_one() -> None:
    old, new = deployment(), deployment(model={"source": {"uri": "bundled://other"}})
    leaving = replica(new, revision=render.revision(old), figures=FIGURES)
    assert decide(new, observation(new, leaving), learnt(old), NOW).memory.told is None
