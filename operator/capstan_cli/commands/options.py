"""Options that several commands take, and the panels under which `--help` lists them."""

from pathlib import Path
from typing import Annotated

import typer

from capstan_cli import output

LOAD = "Load"
OUTPUT = "Results"

Model = Annotated[str | None, typer.Option(help="Served model name.", show_default="the first one served")]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="Permit an address beyond this machine.")]
Speedup = Annotated[
    str,
    typer.Option(
        help="Trace seconds per second: 20, or a course SECOND:SPEED,… that is linear between its points, as in "
        "0:8,60:8,75:30,110:30,125:8.",
    ),
]
Window = Annotated[str | None, typer.Option(help="Only trace seconds START:STOP.")]
Every = Annotated[int, typer.Option(min=1, help="Only each n-th request, as one of n servers would get.")]
Clones = Annotated[int, typer.Option(min=1, max=1000, help="Superpose the trace this many times, shifted at random.")]
MaxPrompt = Annotated[int | None, typer.Option(min=1, help="Cap on prompt tokens.")]
MaxOutput = Annotated[int | None, typer.Option(min=1, help="Cap on output tokens.")]
Mix = Annotated[str, typer.Option(help="Shares of the SLO classes, as in interactive=0.8,batch=0.2.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="OUT", help="Write all figures there.", callback=output.file, rich_help_panel=OUTPUT
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="PNG", help="Draw them there, over time.", callback=output.picture, rich_help_panel=OUTPUT
    ),
]
