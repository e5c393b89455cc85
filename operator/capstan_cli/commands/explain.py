"""`capstan explain`: say why a decision was made."""

from pathlib import Path
from typing import Annotated

import typer


def explain(
    log: Annotated[Path, typer.Argument(metavar="FILE", help="A decision log.")] = Path("build/run/decisions.jsonl"),
    last: Annotated[int, typer.Option(min=1, help="How many of the newest changes.")] = 5,
    inputs: Annotated[
        str | None, typer.Option(metavar="HASH", help="Only the decision with these inputs, as status names them.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Decide each of them again; exit with 3 if one differs.")
    ] = False,
) -> None:
    """Say why the last decisions were made, and what one replica fewer or more would have meant."""
    from rich.console import Console

    from capstan_cli import explain as command

    console = Console()
    for record in command.changes(log, last, inputs):
        console.print(command.drawn(record))
        if again:
            command.again(record)
            console.print("  Decided again: the same.")
