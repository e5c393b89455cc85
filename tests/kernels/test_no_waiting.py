"""A step on a GPU never waits for it, and what is recorded touches nothing of the host's. Shown without a GPU.

Tensors are there in shape, dtype and device only (torch's `FakeTensorMode`): whoever asks for a number of one is found
out, and so is who mixes devices. Kernels are not run; what they are given is looked at.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny_models
from capstan_engine import kernels
from capstan_engine.kernels import triton
from capstan_engine.kernels.triton import stage
from capstan_engine.kernels.triton.decode import decode_kernel
from capstan_engine.messages import SamplingParams
from capstan_engine.models import loading
from capstan_engine.models.weights import Checkpoint
from capstan_engine.runner import load
from capstan_engine.runner.graphs import Compute
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.step import UNKNOWN, ScheduledRequest, StepPlan

RULES = {
    "greedy": tiny_models.greedy(),
    "drawn": SamplingParams(seed=1, max_tokens=9, temperature=0.8, top_k=5, top_p=0.9),
    "penalties": SamplingParams(seed=2, max_tokens=9, repetition_penalty=1.2, logit_bias={3: 1.0}),
    "logprobs": SamplingParams(seed=3, max_tokens=9, temperature=0.0, logprobs=2, prompt_logprobs=2),
}
PROMPTS = {name: tiny_models.random_prompt(3 + 5 * number, number) for number, name in enumerate(RULES)}


class Event:
    """Of a device that has always done everything."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class OnDeviceOnly(TorchDispatchMode):
    """While a step is recorded: the host's memory would be read at the recording and never again."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        assert {tensor.device.type for tensor in tensors} <= {"cuda"}, function
        return result


class Recorder:
    """Counts what it lets be repeated."""

    num_replays = 0

    def __call__(self, compute: Compute) -> Compute:
        with OnDeviceOnly():
            compute()
        return self.replay

    def replay(self) -> None:
        self.num_replays += 1


@pytest.fixture
def nan_in_new_memory() -> None:
    """Not here: there is no memory."""


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Kernels that were launched while tensors are on a GPU that is not there."""
    launched: list[Any] = []

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
        assert tensors
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
        launched.append(kernel)

    def read(self: Checkpoint, names: list[str], dtype: torch.dtype, device: str) -> torch.Tensor:
        shapes = [self.shape(name) for name in names]
        return torch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype=dtype, device=device)

    monkeypatch.setattr(type(decode_kernel), "run", launch)
    monkeypatch.setattr(Checkpoint, "read", read)
    # What stands for a GPU does so in this thread only.
    monkeypatch.setattr(loading, "_MOST_AT_ONCE", 1)
    monkeypatch.setattr(kernels, "choose", lambda _device: triton)
    monkeypatch.setattr(load, "available_memory", lambda _device: 1 << 40)
    monkeypatch.setattr(stage, "INTERPRETED", False)
    monkeypatch.setattr(stage, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield launched


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(load.recorders, "cuda", lambda: recorder)
    return recorder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_checkpoint(tmp_path_factory.mktemp("model"), tiny_models.CASES["qwen3-layer-types"])


@pytest.fixture
def runner(directory: Path, launches: list[Any], recorder: Recorder) -> Runner:
    return tiny_models.load_runner(directory, max_sequences=8, device="cuda")


def prefill(name: str) -> ScheduledRequest:
    number = list(RULES).index(name)
    blocks = range(8 * number, 8 * number + 8)
    return tiny_models.scheduled(PROMPTS[name], blocks=blocks, params=RULES[name], request_id=name)


def decode(name: str, num_output: int) -> ScheduledRequest:
    """Of the token that the step before draws."""
    first, prompt = prefill(name), PROMPTS[name]
    return tiny_models.scheduled(
        [UNKNOWN],
        start=len(prompt) + num_output - 1,
        blocks=first.block_table,
        prompt=prompt,
        output=[*[4] * (num_output - 1), UNKNOWN],
        params=first.params,
        request_id=name,
    )


def test_steps_that_are_launched_kernel_by_kernel_never_wait(runner: Runner, launches: list[Any]) -> None:
    """Prompts of all rules, then some that go on while the next prompt is read."""
    first, second, third, last = RULES
    runner.launch(StepPlan(tuple(map(prefill, (first, second, third)))))
    runner.launch(StepPlan((decode(first, 1), decode(second, 1), decode(third, 1), prefill(last))))
    assert decode_kernel in launches


def test_steps_that_are_repeated_never_wait_and_what_is_recorded_touches_the_device_only(
    runner: Runner, launches: list[Any], recorder: Recorder
) -> None:
    runner.launch(StepPlan(tuple(map(prefill, RULES))))
    for num_output in range(1, 5):
        before = len(launches)
        runner.launch(StepPlan(tuple(decode(name, num_output) for name in RULES)))
    assert recorder.num_replays == 3
    # What no graph has in it is launched behind it: penalties and the tokens that are drawn by them.
    assert 0 < len(launches) - before < 6


@pytest.mark.parametrize(
    "ask", [lambda tokens: tokens[0].item(), lambda tokens: tokens[tokens > 0]], ids=["number", "shape"]
)
def test_whoever_waits_is_found_out(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, ask: Callable[[torch.Tensor], object]
) -> None:
    plain = triton.choose_tokens

    def waiting(logits: torch.Tensor, draws: Any, drawn: torch.Tensor) -> torch.Tensor:
        tokens = plain(logits, draws, drawn)
        ask(tokens)
        return tokens

    monkeypatch.setattr(triton, "choose_tokens", waiting)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        runner.launch(StepPlan((prefill("greedy"),)))
