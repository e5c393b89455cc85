"""`capstan up`: serve on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from capstan_cli.commands.options import Clones, Every, MaxOutput, MaxPrompt, Mix, Seed, Speedup, Window
from capstan_cli.errors import InputError

_REPLAY = "Replayed load"


def up(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|MODEL_DIR", help="An InferenceDeployment in YAML, or a model directory.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the OpenAI-compatible door; 0 takes a free one.")
    ] = 8000,
    print_: Annotated[bool, typer.Option("--print", help="Print the InferenceDeployment as YAML and exit.")] = False,
    run_dir: Annotated[Path, typer.Option(help="Directory for logs and decisions.jsonl.")] = Path("build/run"),
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of the live view, as without a terminal.")
    ] = False,
    replay: Annotated[
        Path | None, typer.Option(metavar="TRACE", help="Send this trace as load, then stop.", rich_help_panel=_REPLAY)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.json and report.png there.", rich_help_panel=_REPLAY),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with 3 unless limits moved, replicas rose and fell, and no accepted request was lost.",
            rich_help_panel=_REPLAY,
        ),
    ] = False,
    settle: Annotated[
        int,
        typer.Option(min=0, help="Seconds to wait after the load for replicas to fall back.", rich_help_panel=_REPLAY),
    ] = 60,
    peak_load: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=100,
            help="Keep only the even share of the trace whose busiest 10 s bring this multiple of the rate at which "
            "one replica serves a burst of it, measured beforehand: the same course on any machine.",
            rich_help_panel=_REPLAY,
        ),
    ] = None,
    speedup: Speedup = "1",
    window: Window = None,
    every: Every = 1,
    clones: Clones = 1,
    max_prompt: MaxPrompt = None,
    max_output: MaxOutput = None,
    slo_class_mix: Mix = "",
    seed: Seed = 0,
) -> None:
    """Serve a model on this machine, scaled by the same decisions as in a cluster.

    Changes to FILE are applied while it runs. Ctrl-C finishes what was accepted and stops; a second one stops at once.

    Exit codes: 0 stopped as asked, 1 failed, 2 wrong file or option, 3 a --check does not hold, 130 stopped at once.
    """
    from capstan_cli import resource

    if print_:
        if source.is_dir():
            print(resource.as_yaml(resource.default_document(source)), end="")
        else:
            deployment = resource.from_file(source)
            print(resource.as_yaml(deployment.model_dump(mode="json", by_alias=True, exclude={"status"})), end="")
        return
    from capstan_cli import up as command
    from capstan_cli.load import TraceLoad
    from capstan_cli.traffic import ClassMix, Speed

    if replay is None and (report or check):
        raise InputError("--report and --check describe a replayed load; add --replay TRACE")
    load = None
    if replay is not None:
        mix = ClassMix.parse(slo_class_mix) if slo_class_mix else ClassMix()
        load = TraceLoad(
            replay, window, every, clones, max_prompt, max_output, Speed.parse(speedup), mix, seed, peak_load
        )
    raise typer.Exit(
        command.run(
            command.Options(
                source=source,
                port=port,
                run_dir=run_dir,
                plain=plain or not sys.stdout.isatty(),
                load=load,
                report=report,
                check=check,
                settle_s=settle,
            )
        )
    )
