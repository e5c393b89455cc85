"""Puts an engine together from its arguments: the one place where `EngineArgs` meets runner and scheduler.

Imports torch only when called, so that whoever calls can choose processors and threads first.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from capstan_api.engine_args import EngineArgs
from capstan_api.startup import StartupPhase
from capstan_engine.engine import Engine
from capstan_engine.messages import Loading
from capstan_engine.scheduler.scheduler import Scheduler


def build_engine(args: EngineArgs, progress: Callable[[Loading], None]) -> tuple[Engine, dict[str, float]]:
    """Load the model and allocate its cache. Returns the engine and the seconds of each start-up phase.

    `progress` is called at every step of the way.

    Raises ModelError for a checkpoint that cannot be served, ConfigurationError for arguments that do not fit.
    """
    phases: dict[str, float] = {}
    progress(Loading(StartupPhase.LOADING))
    with _timed(phases, "import"):
        from capstan_engine.runner import device
        from capstan_engine.runner.load import build_runner
    with _timed(phases, "load"):
        runner = build_runner(
            args.model,
            precision=args.precision,
            quantization=args.quantization,
            kv_cache_bytes=args.kv_cache_bytes,
            block_size=args.block_size,
            max_model_len=args.max_model_len,
            memory_bytes=args.memory_bytes,
            num_threads=args.num_threads,
            device=(kind := device.kind()),
            max_batched_tokens=args.envelope.max_batched_tokens,
            max_sequences=args.envelope.max_sequences,
            progress=lambda done, total: progress(Loading(StartupPhase.LOADING, done, total)),
        )
    with _timed(phases, "warm_up"):
        runner.warm_up(lambda: progress(Loading(StartupPhase.WARMING)))
    scheduler = Scheduler(
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=args.max_model_len,
        limits=args.envelope.top,
        max_queued_requests=args.max_queued_requests,
        prefix_caching=args.prefix_caching,
    )
    # On a CPU to launch a step is to compute it: there is nothing to hide anything behind.
    return Engine(scheduler, runner, overlap=kind != "cpu"), phases


@contextmanager
def _timed(phases: dict[str, float], phase: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    phases[phase] = time.monotonic() - started
