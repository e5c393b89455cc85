"""Products with bfloat16 weights that are held in 12 bits against the same in 16, in turn.

    python tests/bench/cpu_products.py [--threads 1] [--rounds 15]

Ten weights `[5632, 2048]` of normal random numbers in turn, so that no cache holds them. Prints microseconds for each,
medians of the rounds, and the ratio: above 1 where 12 bits are faster.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from capstan_engine.kernels import Linear
from capstan_engine.kernels.native import products
from capstan_engine.kernels.native.coding import is_worthwhile

WEIGHTS, SHAPE = 10, (5632, 2048)
ROWS = (1, 2, 4, 6, 8, 16, 64, 512)


def microseconds(linears: Sequence[Linear], x: torch.Tensor) -> float:
    """Of one of them."""
    began = time.perf_counter()
    for linear in linears:
        linear(x)
    return (time.perf_counter() - began) / len(linears) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if not is_worthwhile():
        raise SystemExit("this processor has no AVX-512: weights are held in 16 bits, and there is nothing to compare")
    torch.set_num_threads(arguments.threads)
    weights = [torch.randn(SHAPE).bfloat16() for _ in range(WEIGHTS)]
    coded = [products.pack_linear(weight, None) for weight in weights]
    plain = [products.pack_uncoded(weight, None) for weight in weights]
    print(f"{arguments.threads} thread(s), medians of {arguments.rounds}\n")
    print("| rows | 16 bits, µs | 12 bits, µs | ratio |\n|---|---|---|---|")
    for rows in ROWS:
        x = torch.randn(rows, SHAPE[1]).bfloat16()
        taken = [(microseconds(plain, x), microseconds(coded, x)) for _ in range(arguments.rounds)]
        in_16, in_12 = map(statistics.median, zip(*taken, strict=True))
        print(f"| {rows} | {in_16:,.0f} | {in_12:,.0f} | {in_16 / in_12:.2f} |", flush=True)


if __name__ == "__main__":
    main()
