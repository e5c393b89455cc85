"""`capstan chat`: talk to a model."""

from typing import Annotated

import typer

from capstan_cli.commands.options import AllowRemote, Model


def chat(
    url: Annotated[str, typer.Option(help="The server to talk to.")] = "http://127.0.0.1:8000",
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Talk to a model in the terminal; each turn shows its TTFT and TPOT."""
    from capstan_cli import chat as command
    from capstan_cli import endpoint

    command.run(endpoint.base_url(url, allow_remote=allow_remote), model, max_tokens, temperature, system)
