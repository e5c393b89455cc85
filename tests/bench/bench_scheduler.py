"""Microseconds that the scheduler needs per step, plan and commit together, without any model.

    python tests/bench/bench_scheduler.py [--steps 400] [--context 1024]

`decode` steps give every running request one token. `mixed` steps also prefill: every 8 steps one request is replaced
by a new one whose prompt is computed in chunks beside the decodes. Prints the median and the 95th percentile; the
garbage collector is set as in the core.
"""

import argparse
import statistics
import time

from capstan_api.limits import BatchLimits
from capstan_engine.core import quiet_collector
from capstan_engine.messages import SamplingParams, Submit
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import Sampled, StepPlan, StepResult

BLOCK_SIZE = 16


def _submit(number: int, num_prompt_tokens: int, max_tokens: int) -> Submit:
    return Submit(
        request_id=f"r{number}",
        prompt_token_ids=[(number * 7919 + position) % 4096 for position in range(num_prompt_tokens)],
        params=SamplingParams(seed=0, max_tokens=max_tokens),
        arrival_time=0.0,
    )


def _result(plan: StepPlan) -> StepResult:
    return StepResult(sampled={s.request_id: Sampled(s.start % 4096) for s in plan.scheduled if s.samples})


def measure(num_running: int, context: int, num_steps: int, *, mixed: bool) -> list[float]:
    """Seconds of each of `num_steps` steps at `num_running` requests of about `context` tokens."""
    blocks_each = (context + 2 * num_steps) // BLOCK_SIZE + 2
    scheduler = Scheduler(
        num_blocks=(num_running + 8) * blocks_each,
        block_size=BLOCK_SIZE,
        max_model_len=context + 2 * num_steps,
        limits=BatchLimits(max_sequences=num_running, max_batched_tokens=1 << 30),
        max_queued_requests=num_running,
    )
    for number in range(num_running):
        scheduler.submit(_submit(number, context, 2 * num_steps))
    plan = scheduler.plan(0.0)
    scheduler.commit(plan, _result(plan), 0.0)
    scheduler.set_limits(BatchLimits(max_sequences=num_running, max_batched_tokens=num_running + 256))
    seconds, newest = [], num_running
    for step in range(num_steps):
        if mixed and step % 8 == 0:
            scheduler.abort([f"r{newest - num_running}"])
            scheduler.submit(_submit(newest, context, 2 * num_steps))
            newest += 1
        started = time.perf_counter()
        plan = scheduler.plan(float(step))
        planned = time.perf_counter()
        result = _result(plan)
        computed = time.perf_counter()
        scheduler.commit(plan, result, float(step))
        seconds.append(time.perf_counter() - computed + planned - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--context", type=int, default=1024)
    args = parser.parse_args()
    quiet_collector()
    print(f"{'running':>8} {'steps':>8} {'median µs':>10} {'p95 µs':>8}")
    for num_running in (16, 64, 256):
        for kind in ("decode", "mixed"):
            seconds = measure(num_running, args.context, args.steps, mixed=kind == "mixed")
            p95 = statistics.quantiles(seconds, n=20)[-1]
            print(f"{num_running:>8} {kind:>8} {statistics.median(seconds) * 1e6:>10.0f} {p95 * 1e6:>8.0f}")


if __name__ == "__main__":
    main()
