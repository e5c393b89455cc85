"""`capstan plan`: what a model takes of memory."""

from pathlib import Path
from typing import Annotated

import typer


def plan(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A directory with the model's config.json.")],
    accelerator: Annotated[
        str, typer.Option(help="cpu, a100-40gb, a100-80gb, b200, h100, h200, l4 or l40s; others with their memory.")
    ] = "cpu",
    memory_mebibytes: Annotated[
        int | None,
        typer.Option(min=1, help="Memory of one replica.", show_default="the accelerator's, or this machine's"),
    ] = None,
    context: Annotated[int, typer.Option(min=16, help="Tokens of each sequence, prompt and output together.")] = 4096,
    precision: Annotated[str, typer.Option(help="Auto, Float32 or BFloat16.")] = "Auto",
    quantization: Annotated[
        str | None, typer.Option(help="Only this one of spec.variants[].quantization.", show_default="all that can run")
    ] = None,
    max_batched_tokens: Annotated[int, typer.Option(min=1, help="Token budget of one step.")] = 2048,
    block_size: Annotated[int, typer.Option(min=1, max=256, help="KV slots in one block.")] = 16,
) -> None:
    """Print what a model takes of memory and the largest batch that fits, by the formula that the engine refuses by."""
    from rich.console import Console

    from capstan_cli import plan as command

    budget = command.budget(accelerator, memory_mebibytes, context, max_batched_tokens, block_size)
    command.show(command.rows(model, precision, quantization, budget), model, budget, Console())
