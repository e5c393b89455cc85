"""The `capstan` command: what a person can type, and nothing of how it is done.

Every command imports what it needs when it runs, so that `capstan --help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from capstan_cli.errors import CliError, InputError

app = typer.Typer(
    name="capstan",
    help="Serve language models within their latency objectives: an engine, an autoscaler, and what watches them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_REPLAY = "Replayed load"
_LOAD = "Load"
_LIMITS = "What counts as good"
_OUTPUT = "Results"

Model = Annotated[str | None, typer.Option(help="Served model name. [default: the first one served]")]
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


@app.command()
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


@app.command()
def bench(
    address: Annotated[str | None, typer.Argument(metavar="URL", help="Same as --url.", show_default=False)] = None,
    url: Annotated[str, typer.Option(help="The server under test.")] = "http://127.0.0.1:8000",
    model: Model = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV with t,prompt,output: seconds and tokens, gzipped or not.", rich_help_panel=_LOAD),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Poisson arrivals, requests/s.", rich_help_panel=_LOAD)
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Closed loop: this many requests always open.", rich_help_panel=_LOAD),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds of load, for --rate and --concurrency.")
    ] = 30.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompt length, for --rate and --concurrency.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Output length, for --rate and --concurrency.")] = 64,
    speedup: Speedup = "1",
    window: Window = None,
    every: Every = 1,
    clones: Clones = 1,
    max_prompt: MaxPrompt = None,
    max_output: MaxOutput = None,
    shared_prefix: Annotated[
        int, typer.Option(min=0, help="Tokens that all prompts begin with alike; 0: no two share a prefix.")
    ] = 0,
    completions: Annotated[
        bool, typer.Option("--completions", help="Use /v1/completions instead of chat completions.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="Refuse to send more than this.")] = 100_000,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds after which a request is lost.")] = 600.0,
    slo: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="InferenceDeployment whose thresholds apply.", rich_help_panel=_LIMITS),
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(min=0, help="TTFT threshold of every class.", rich_help_panel=_LIMITS)
    ] = None,
    tpot_ms: Annotated[
        float | None, typer.Option(min=0, help="TPOT threshold of every class.", rich_help_panel=_LIMITS)
    ] = None,
    slo_class_mix: Mix = "",
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write all figures there.", rich_help_panel=_OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw load and latencies there.", rich_help_panel=_OUTPUT)
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Fit the seconds of a step to those that the engine took, and write the step model for simulate.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    engine_admin: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The engine's admin port, for --calibrate; its token is taken from CAPSTAN_ADMIN_TOKEN.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    seed: Seed = 0,
    allow_remote: AllowRemote = False,
) -> None:
    """Measure a server: TTFT, TPOT and goodput under a trace, Poisson arrivals, or a fixed concurrency.

    The first two are open loop: arrivals never wait for answers. Prompts are readable text of the exact token counts.
    Exits with 1 when an accepted request failed, was lost or was truncated.
    """
    from rich.console import Console

    from capstan_cli import bench as command
    from capstan_cli import endpoint, resource
    from capstan_cli.load import TraceLoad, declared
    from capstan_cli.measure import Thresholds
    from capstan_cli.traffic import ClassMix, Speed

    if (trace is not None) + (rate is not None) + (concurrency is not None) != 1:
        raise InputError("choose one load: --trace FILE, --rate REQUESTS_PER_SECOND or --concurrency N")
    mix = ClassMix.parse(slo_class_mix) if slo_class_mix else ClassMix()
    load: command.Load
    if trace is not None:
        load = TraceLoad(trace, window, every, clones, max_prompt, max_output, Speed.parse(speedup), mix, seed)
    elif rate is not None:
        load = command.PoissonLoad(rate, duration, prompt_tokens, output_tokens, mix, seed)
    else:
        load = command.ClosedLoad(concurrency or 1, duration, prompt_tokens, output_tokens, mix, seed)
    options = command.Options(
        base=endpoint.base_url(address or url, allow_remote=allow_remote),
        model=model,
        chat=not completions,
        temperature=temperature,
        shared_prefix_tokens=shared_prefix,
        seed=seed,
        timeout_s=timeout,
        max_requests=max_requests,
        thresholds=declared(resource.from_file(slo).spec) if slo else {},
        default_thresholds=Thresholds(ttft_ms, tpot_ms),
    )
    collector = None
    if (calibrate is None) != (engine_admin is None):
        raise InputError("--calibrate OUT and --engine-admin URL belong together")
    if calibrate is not None and engine_admin is not None:
        import os

        from capstan_api.names import ENV_ADMIN_TOKEN
        from capstan_cli import calibrate as calibration

        address = endpoint.base_url(engine_admin, allow_remote=allow_remote)
        collector = calibration.Collector(address, os.environ.get(ENV_ADMIN_TOKEN, ""))
    console = Console()
    summary, outcomes, facts = command.run(load, options, console, collector)
    console.print(command.table(summary))
    for line in command.lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_:
        command.write_json(json_, command.as_json(summary, outcomes, facts))
    if calibrate is not None and collector is not None:
        fit = collector.fit()
        calibration.write(calibrate, fit)
        console.print(calibration.sentence(fit), highlight=False, soft_wrap=True)
    if plot:
        from capstan_cli import plot as drawing

        drawing.draw(plot, outcomes, options.thresholds or {"default": options.default_thresholds})
    raise typer.Exit(int(summary.failed + summary.lost + summary.truncated > 0))


@app.command()
def simulate(
    trace: Annotated[
        Path,
        typer.Option(
            help="CSV with t,prompt,output and, where known, cached, session and slo_class; or a gateway's log.",
            rich_help_panel=_LOAD,
        ),
    ],
    spec: Annotated[Path, typer.Option(metavar="FILE", help="The InferenceDeployment in question.")],
    step_model: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="Seconds of a step: llama3-8b-h100, llama3-70b-4xh100, a model in JSON, or an engine's step log.",
        ),
    ] = "llama3-8b-h100",
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
        str, typer.Option(help="capstan, or a peer to compare with: NAME[:KNOB], static:N. Unknown names list them.")
    ] = "capstan",
    compare: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Ask several policies and show them side by side.")
    ] = None,
    cold_start: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds from a pod's launch to ready.")] = 120.0,
    initial_replicas: Annotated[
        int | None, typer.Option(min=0, help="Ready at the beginning. [default: scaling.minReplicas]")
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
    window: Window = None,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, help="Leave out requests with a longer prompt.", rich_help_panel=_LOAD)
    ] = None,
    clones: Clones = 1,
    slo_class_mix: Mix = "",
    prefix_hits: Annotated[
        bool,
        typer.Option(
            "--prefix-hits",
            help="Skip the prompt tokens that the column cached names, or that the same session had before.",
            rich_help_panel=_LOAD,
        ),
    ] = False,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write all figures there.", rich_help_panel=_OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw load, attainment and fleet there.", rich_help_panel=_OUTPUT)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Ask what a trace would meet: the real law, or a known autoscaler, over a fleet in simulated time.

    Scheduling and decisions are the real ones; imitated are the seconds of a step and the start of a pod. The same
    options give the same report, byte for byte.
    """
    from rich.console import Console

    from capstan_cli import simulate as command
    from capstan_cli.traffic import ClassMix

    options = command.Options(
        trace=trace,
        spec=spec,
        changes=set_ or (),
        step_model=step_model,
        kv_tokens=kv_tokens,
        policies=list(dict.fromkeys(compare.split(","))) if compare else [policy],
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
    )
    console = Console()
    reports = command.run(options, console)
    console.print(command.table(reports))
    for line in command.lines(reports):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_:
        command.write_json(json_, reports)
    if plot:
        from capstan_cli import simulate_plot as drawing

        drawing.draw(plot, reports, f"{trace.name}, {cold_start:g} s cold start")


@app.command()
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


@app.command()
def plan(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A directory with the model's config.json.")],
    accelerator: Annotated[
        str, typer.Option(help="cpu, a100-40gb, a100-80gb, b200, h100, h200, l4 or l40s; others with their memory.")
    ] = "cpu",
    memory_mebibytes: Annotated[
        int | None, typer.Option(min=1, help="Memory of one replica. [default: the accelerator's, or this machine's]")
    ] = None,
    context: Annotated[int, typer.Option(min=16, help="Tokens of each sequence, prompt and output together.")] = 4096,
    precision: Annotated[str, typer.Option(help="Auto, Float32 or BFloat16.")] = "Auto",
    quantization: Annotated[
        str | None, typer.Option(help="Only this one of spec.variants[].quantization. [default: all that can run]")
    ] = None,
    max_batched_tokens: Annotated[int, typer.Option(min=1, help="Token budget of one step.")] = 2048,
    block_size: Annotated[int, typer.Option(min=1, max=256, help="KV slots in one block.")] = 16,
) -> None:
    """Print what a model takes of memory and the largest batch that fits, by the formula that the engine refuses by."""
    from rich.console import Console

    from capstan_cli import plan as command

    budget = command.budget(accelerator, memory_mebibytes, context, max_batched_tokens, block_size)
    command.show(command.rows(model, precision, quantization, budget), model, budget, Console())


@app.command()
def fetch(
    uri: Annotated[str, typer.Argument(metavar="URI", help="hf://ORGANIZATION/NAME or s3://BUCKET/PREFIX.")],
    directory: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Where the checkpoint shall lie.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of an hf:// source.")] = None,
    digest: Annotated[str | None, typer.Option(help="What the files must add up to, as sha256:….")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Another server than the public one, private addresses included.")
    ] = None,
) -> None:
    """Download a checkpoint as a replica in a cluster would: verified, resumed after interruptions, no code in it.

    HF_TOKEN, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are taken from the environment.
    """
    from capstan_cli import obtain

    print(obtain.checkpoint(uri, directory, revision=revision, digest=digest, endpoint=endpoint))


@app.command()
def digest(
    directory: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A checkpoint, downloaded by any tool.")],
) -> None:
    """Print what spec.model.source.digest pins a checkpoint with: one hash of all files that a replica would fetch."""
    from capstan_cli import pin

    print(pin.digest(directory))


@app.command()
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


def main() -> None:
    """Entry point: a known error becomes one sentence on stderr and its exit code."""
    try:
        app()
    except CliError as error:
        print(f"capstan: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone (`capstan … | head`); say nothing more, not even at exit.
        sys.stdout = None
        sys.exit(1)
