"""A KV cache that was given no size takes what the rest leaves: by the figures on a CPU, by measuring on a device."""

from collections.abc import Callable
from pathlib import Path

import pytest

from capstan_api.engine_args import Precision
from capstan_api.footprint import KV_CACHE_SHARE, Demand
from capstan_engine.errors import Infeasible
from capstan_engine.runner import load
from capstan_engine.runner.room import DEFAULT_BYTES
from capstan_engine.runner.runner import Runner
from tiny_models import Case, generate, random_prompt, write_checkpoint

MIB = 1 << 20
DEMAND = Demand(0, block_size=4, max_model_len=64, max_batched_tokens=96, max_sequences=8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models"), Case("Llama"))


def build(directory: Path, *, memory_bytes: int | None = None, kv_cache_bytes: int | None = None) -> Runner:
    return load.build_runner(
        directory,
        precision=Precision.FLOAT32,
        kv_cache_bytes=kv_cache_bytes,
        memory_bytes=memory_bytes,
        block_size=DEMAND.block_size,
        max_model_len=DEMAND.max_model_len,
        max_batched_tokens=DEMAND.max_batched_tokens,
        max_sequences=DEMAND.max_sequences,
        num_threads=1,
    )


def test_on_a_cpu_it_fills_the_memory_that_is_ours(directory: Path) -> None:
    runner = build(directory, memory_bytes=700 * MIB)
    held = runner.num_blocks * DEMAND.block_size * runner.figures.kv_token
    assert held == runner.figures.kv_cache_bytes(DEMAND, 700 * MIB)
    assert 100 * MIB < held < 220 * MIB  # 480 of the 700 are the processes'


def test_where_nobody_said_what_is_ours_it_is_small(directory: Path) -> None:
    runner = build(directory)
    block = DEMAND.block_size * runner.figures.kv_token
    assert runner.num_blocks == DEFAULT_BYTES // block


def test_memory_without_room_for_one_request_is_infeasible(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_memory", lambda _: 400 * MIB)
    with pytest.raises(Infeasible, match=r"set resources\.memoryMebibytes to at least"):
        build(directory, memory_bytes=4096 * MIB)


class Measured:
    """A device with so much free, on which a step takes so much, and its libraries when they are first used."""

    LIBRARIES = 20 * MIB

    def __init__(self, free: int, peak: int) -> None:
        self.free_bytes, self.peak_bytes, self.steps = free, peak, 0

    def free(self) -> int:
        return self.free_bytes

    def peak(self, work: Callable[[], None]) -> int:
        work()
        self.free_bytes -= self.LIBRARIES
        self.steps += 1
        return self.peak_bytes


@pytest.mark.parametrize("peak", [0, 60 * MIB])
def test_on_a_device_it_takes_its_share_of_what_is_measured(
    directory: Path, monkeypatch: pytest.MonkeyPatch, peak: int
) -> None:
    """And the measuring leaves nothing behind: tokens are those of an engine that was told the size."""
    meter = Measured(free=300 * MIB, peak=peak)
    tried: list[tuple[int, int]] = []
    try_step = Runner.try_step

    def watched(self: Runner, num_sequences: int, length: int) -> None:
        tried.append((num_sequences, length))
        try_step(self, num_sequences, length)

    monkeypatch.setattr(Runner, "try_step", watched)
    monkeypatch.setitem(load.meters, "cpu", lambda: meter)
    runner = build(directory)
    assert tried == [(8, 12)]
    assert meter.steps == 1
    step = max(peak, runner.figures.footprint(DEMAND).step)
    wanted = KV_CACHE_SHARE * (300 * MIB - Measured.LIBRARIES - step)
    block = DEMAND.block_size * runner.figures.kv_token
    assert wanted - block < runner.num_blocks * block <= wanted
    monkeypatch.delitem(load.meters, "cpu")
    told = build(directory, kv_cache_bytes=runner.num_blocks * block)
    prompt = random_prompt(20)
    assert generate(runner, prompt, 8) == generate(told, prompt, 8)


def test_a_device_without_room_for_one_request_says_what_there_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load.meters, "cpu", lambda: Measured(free=0, peak=0))
    with pytest.raises(load.ConfigurationError, match=r"kv_cache_bytes: 0 bytes hold 0 blocks"):
        build(directory)
