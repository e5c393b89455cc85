"""`capstan simulate`: ask what a trace would meet."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from capstan_cli.commands.options import LOAD, Clones, Json, Mix, Plot, Seed, Window
from capstan_cli.errors import InputError


def simulate(
    trace: Annotated[
        Path,
        typer.Option(
            help="CSV with t,prompt,output and, where known, cached, session and slo_class; or a gateway's log.",
            rich_help_panel=LOAD,
        ),
    ],
    spec: Annotated[Path, typer.Option(metavar="FILE", help="The InferenceDeployment in question.")],
    step_model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Seconds of a step: llama3-8b-h100, llama3-70b-4xh100, what bench --calibrate wrote, or an engine's "
            "step log.",
            show_default="the resource's stepTime, else llama3-8b-h100",
        ),
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that one replica's KV cache holds; a step log does not tell.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change the resource, as in scaling.maxReplicas=6. Repeatable."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="The law, or a peer to compare with: NAME[:KNOB], static:N. Unknown names list them.",
            show_default="capstan",
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Ask several policies and show them side by side.")
    ] = None,
    cold_start: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds from a pod's launch to ready.")] = 120.0,
    initial_replicas: Annotated[
        int | None, typer.Option(min=0, help="Ready at the beginning.", show_default="scaling.minReplicas")
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND@START[:STOP][=AMOUNT]",
            help="What befalls the fleet: fail@600, reclaim@600=2, blind@600:900, no-room@600:900, "
            "slow-start@600:900=3, slow-steps@0:900=1.5. Repeatable.",
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Step the engine's own scheduler token by token: slow, KV in whole blocks.")
    ] = False,
    routing: Annotated[
        Literal["gateway", "outstanding"],
        typer.Option(help="Replicas are chosen as by the gateway, or by the number of their requests alone."),
    ] = "gateway",
    window: Window = None,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, help="Leave out requests with a longer prompt.", rich_help_panel=LOAD)
    ] = None,
    clones: Clones = 1,
    slo_class_mix: Mix = "",
    prefix_hits: Annotated[
        bool,
        typer.Option(
            "--prefix-hits",
            help="Skip the prompt tokens that the column cached names, or that the same session had before.",
            rich_help_panel=LOAD,
        ),
    ] = False,
    json_: Json = None,
    plot: Plot = None,
    seed: Seed = 0,
) -> None:
    """Ask what a trace would meet: the real law, or a known autoscaler, over a fleet in simulated time.

    Routing, scheduling and decisions are the real ones; imitated are the seconds of a step and the start of a pod. The
    same options give the same report, byte for byte.
    """
    from rich.console import Console

    from capstan_cli import output, simulate_table
    from capstan_cli import simulate as command
    from capstan_cli.traffic import ClassMix

    if policy and compare:
        raise InputError("choose --policy NAME or --compare A,B,…, which names them all")
    options = command.Options(
        trace=trace,
        spec=spec,
        changes=set_ or (),
        step_model=step_model,
        kv_tokens=kv_tokens,
        policies=list(dict.fromkeys(name.strip() for name in (compare or policy or "capstan").split(","))),
        window=window,
        max_prompt=max_prompt,
        clones=clones,
        seed=seed,
        mix=ClassMix.parse(slo_class_mix) if slo_class_mix else ClassMix(),
        prefix_hits=prefix_hits,
        cold_start_s=cold_start,
        initial_replicas=initial_replicas,
        events=event or (),
        is_exact=exact,
        routing=routing,
    )
    console = Console()
    reports = command.run(options, console)
    for table in simulate_table.tables(reports):
        console.print()
        console.print(table)
    if json_:
        output.write_json(json_, simulate_table.document(reports))
    if plot:
        from capstan_cli import simulate_plot as drawing

        drawing.draw(plot, reports, f"{trace.name}, {cold_start:g} s cold start")
