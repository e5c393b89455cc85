"""Repeated steps give the tokens of steps that are launched kernel by kernel, whatever changes between them.

Without a GPU a graph is the function that would be recorded, called again: with the tensors of the step that it was
recorded in, so whatever does not come to it through them is found out.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny_models
from capstan_api.limits import BatchLimits
from capstan_engine import kernels
from capstan_engine.engine import Engine
from capstan_engine.kernels import reference, triton
from capstan_engine.kernels.triton.machine import INTERPRETED
from capstan_engine.kernels.triton.stage import DeviceStage
from capstan_engine.messages import Output, SamplingParams, Submit
from capstan_engine.runner import load
from capstan_engine.runner.graphs import Compute
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.scheduler import Scheduler

DEVICE = "cpu" if INTERPRETED else "cuda"


class Recorder:
    """Counts. Fails where it is told to."""

    def __init__(self, fails: bool = False) -> None:
        self.num_recorded = self.num_replays = 0
        self.fails = fails

    def __call__(self, compute: Compute) -> Compute:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.num_recorded += 1

        def replay() -> None:
            self.num_replays += 1
            compute()

        return replay


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With layers of two kinds of attention."""
    return tiny_models.write_checkpoint(tmp_path_factory.mktemp("model"), tiny_models.CASES["qwen3-layer-types"])


@pytest.fixture
def runner_with(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder | None], Runner]:
    """On Triton with a recorder; with None plain torch, one step at a time."""

    def build(recorder: Recorder | None) -> Runner:
        monkeypatch.setattr(kernels, "choose", lambda device: reference if recorder is None else triton)
        if recorder is None:
            return tiny_models.load_runner(directory)
        monkeypatch.setitem(load.recorders, DEVICE, lambda: recorder)
        return tiny_models.load_runner(directory, max_sequences=4, device=DEVICE)

    return build


def answers(runner: Runner, *, overlap: bool) -> dict[str, list[Output]]:
    """Three requests of different lengths, of which one is drawn, one has penalties and one is asked about."""
    scheduler = Scheduler(
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=128,
        limits=BatchLimits(max_sequences=4, max_batched_tokens=64),
        max_queued_requests=8,
    )
    engine = Engine(scheduler, runner, overlap=overlap)
    rules = (
        SamplingParams(seed=3, max_tokens=7, temperature=0.9, top_p=0.95),
        SamplingParams(seed=4, max_tokens=5, temperature=0.8, repetition_penalty=1.4, presence_penalty=0.4),
        SamplingParams(seed=5, max_tokens=3, temperature=0.0, logprobs=2),
    )
    outputs: dict[str, list[Output]] = {}
    for number, params in enumerate(rules):
        prompt = tiny_models.random_prompt(5 + 4 * number, seed=number)
        engine.submit(Submit(request_id=f"{number}", prompt_token_ids=prompt, params=params, arrival_time=0.0))
    while engine.has_work:
        for output in engine.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def same(ours: dict[str, list[Output]], theirs: dict[str, list[Output]]) -> bool:
    """The tokens, and log probabilities but for rounding."""
    for name, expected in theirs.items():
        got = ours[name]
        assert [output.token_ids for output in got] == [output.token_ids for output in expected]
        for mine, other in zip(got, expected, strict=True):
            for one, two in zip(mine.logprobs or [], other.logprobs or [], strict=True):
                assert one.ids == two.ids
                assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
    return True


@pytest.fixture
def plain(runner_with: Callable[[Recorder | None], Runner]) -> dict[str, list[Output]]:
    return answers(runner_with(None), overlap=False)


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
def test_repeated_steps_give_the_references_tokens(
    runner_with: Callable[[Recorder | None], Runner], plain: dict[str, list[Output]], overlap: bool
) -> None:
    recorder = Recorder()
    ours = answers(runner_with(recorder), overlap=overlap)
    # Of the sizes 4, 2 and 1 each has one step that is not repeated.
    assert recorder.num_replays >= 2
    assert recorder.num_recorded <= recorder.num_replays
    assert same(ours, plain)


def test_a_step_that_cannot_be_recorded_is_launched_and_the_log_says_why(
    runner_with: Callable[[Recorder | None], Runner],
    plain: dict[str, list[Output]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(fails=True)
    with caplog.at_level(logging.WARNING):
        assert same(answers(runner_with(recorder), overlap=True), plain)
    assert recorder.num_replays == 0
    assert "launched kernel by kernel, which is slower: operation not permitted" in caplog.text


def test_a_size_has_one_stage_however_many_steps_it_has(
    runner_with: Callable[[Recorder | None], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage is pinned memory and events: made in every step they would cost more than planning it."""
    runner = runner_with(Recorder())
    stages: list[DeviceStage] = []

    def new_stage() -> DeviceStage:
        stages.append(DeviceStage())
        return stages[-1]

    monkeypatch.setattr(triton, "new_stage", new_stage)
    answers(runner, overlap=True)
    # Of the sizes 4, 2 and 1, each of which has two steps at least.
    assert len(stages) == 3


def test_warming_up_begins_with_the_largest_graph(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are recorded into one pool, where a later one finds room only if none before it was smaller."""
    monkeypatch.setattr(kernels, "choose", lambda device: triton)
    monkeypatch.setitem(load.recorders, DEVICE, Recorder)
    runner = tiny_models.load_runner(directory, max_sequences=100, device=DEVICE)
    sizes: list[int] = []
    monkeypatch.setattr(runner, "execute", lambda plan: sizes.append(len(plan.scheduled)))
    runner.warm_up()
    # The prompts between are one request.
    decodes = [size for size in sizes if size > 1]
    assert decodes[:2] == [100, 100]
    assert decodes == sorted(decodes, reverse=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_give_the_tokens_of_the_reference(
    directory: Path, plain: dict[str, list[Output]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product's own recorder, behind a warm-up that records the sizes beforehand."""
    monkeypatch.undo()
    runner = tiny_models.load_runner(directory, max_sequences=4, device="cuda")
    runner.warm_up()
    assert same(answers(runner, overlap=True), plain)
