"""The live view of `capstan up`: a pure function from the frames so far to something that rich can draw.

Colour says one thing only: how a value stands to its bound. Green is well inside, yellow is in its last fifth, red is
beyond. Nothing is said by colour alone; the numbers stand beside the bars.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from capstan_cli.frames import ClassFrame, Frame, ReplicaFrame

_BLOCKS = "▁▂▃▄▅▆▇█"
_PHASE_STYLES = {"Pending": "yellow", "Ready": "green", "Starting": "yellow", "Draining": "cyan", "Failed": "bold red"}
_NUM_EARLIER = 3
_BAR_WIDTH = 10


def render(frames: Sequence[Frame], width: int, note: str = "") -> RenderableType:
    """The view of the newest frame, with the older ones as its history; `note` is shown at the bottom."""
    frame = frames[-1]
    spark_width = max(min(width - 40, 60), 10)
    parts: list[RenderableType] = [
        _classes(frame),
        Text(),
        _facts(frames, spark_width),
        Text(),
        _replicas(frame),
        Text(),
        _decisions(frame),
    ]
    if frame.error:
        parts += [Text(), Text(f"The last turn failed: {frame.error}", style="bold red")]
    if note:
        parts += [Text(), Text(note, style="bold")]
    parts += [Text(), _endpoint(frame)]
    title = f"[bold]capstan[/] · {frame.name} · {frame.model} · {clock(frame.at - frames[0].at)}"
    return Panel(Group(*parts), title=title, title_align="left", width=width, border_style="dim", padding=(1, 2))


def clock(seconds: float) -> str:
    """Minutes and seconds, `01:23`."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def bar(share: float, width: int = _BAR_WIDTH) -> Text:
    """A bar of `share` of 1, green up to 0.8, yellow up to 1, red beyond; full from 1 on."""
    style = "green" if share <= 0.8 else "yellow" if share <= 1 else "red"
    filled = round(max(0.0, min(share, 1.0)) * width)
    return Text("━" * filled, style=style) + Text("━" * (width - filled), style="bright_black")


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The newest `width` values as blocks, scaled to their own maximum; a space where there is none."""
    shown = values[-width:]
    top = max((v for v in shown if v is not None), default=0.0)
    return "".join(
        " " if v is None else _BLOCKS[min(int(v / top * len(_BLOCKS)), len(_BLOCKS) - 1) if top else 0] for v in shown
    )


def _labelled() -> Table:
    """Rows of a dim label and what it labels; the labels of all such tables are aligned."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(overflow="fold")
    return table


def _classes(frame: Frame) -> Table:
    table = Table.grid(padding=(0, 2))
    percentile = frame.classes[0].percentile if frame.classes else 95
    heads = ("SLO class", f"TTFT p{percentile}", "", f"TPOT p{percentile}", "", "attained")
    for index in range(len(heads)):
        table.add_column(justify="right" if index == 5 else "left", no_wrap=True)
    table.add_row(*(Text(head, style="dim") for head in heads))
    for c in frame.classes:
        table.add_row(
            Text(c.name, style="bold"),
            *_latency(c.ttft_ms, c.ttft_threshold_ms),
            *_latency(c.tpot_ms, c.tpot_threshold_ms),
            _attained(c),
        )
    return table


def _latency(value: int | None, threshold: int | None) -> tuple[Text, Text]:
    if threshold is None:
        return Text("–" if value is None else f"{value} ms", style="dim"), Text()
    if value is None:
        return Text(f"– / {threshold} ms", style="dim"), bar(0)
    share = value / threshold
    return Text(f"{value} / {threshold} ms", style="bold red" if share > 1 else ""), bar(share)


def _attained(c: ClassFrame) -> Text:
    return Text("–", style="dim") if c.attainment_percent is None else Text(f"{c.attainment_percent:.1f} %")


def _facts(frames: Sequence[Frame], spark_width: int) -> Table:
    frame = frames[-1]
    table = _labelled()
    load = "–" if frame.requests_per_s is None else f"{frame.requests_per_s:.1f} requests/s"
    if frame.output_tokens_per_s is not None:
        load += f", {frame.output_tokens_per_s:.0f} tokens/s"
    if frame.waiting:
        load += f", {frame.waiting} waiting"
    table.add_row("Load", load)
    table.add_row("", Text(sparkline([f.requests_per_s for f in frames], spark_width), style="blue"))
    table.add_row("TTFT", Text(sparkline([_worst_ttft(f) for f in frames], spark_width), style="magenta"))
    table.add_row("Limits", _limits(frame))
    return table


def _worst_ttft(frame: Frame) -> float | None:
    """The largest TTFT over its threshold, so that one line stands for all classes."""
    shares = [c.ttft_ms / c.ttft_threshold_ms for c in frame.classes if c.ttft_ms is not None and c.ttft_threshold_ms]
    return max(shares, default=None)


def _limits(frame: Frame) -> Text:
    if frame.limits is None:
        return Text("–", style="dim")
    text = Text(f"{frame.limits.max_batched_tokens} tokens ")
    if frame.envelope is None:
        return text + Text(f" {frame.limits.max_sequences} sequences")
    tokens = frame.limits.max_batched_tokens / frame.envelope.max_batched_tokens
    sequences = frame.limits.max_sequences / frame.envelope.max_sequences
    return (
        text
        + _level(tokens)
        + Text(f" of {frame.envelope.max_batched_tokens}", style="dim")
        + Text(f"   {frame.limits.max_sequences} sequences ")
        + _level(sequences)
        + Text(f" of {frame.envelope.max_sequences}", style="dim")
    )


def _level(share: float) -> Text:
    """A bar without judgement: a limit at its top is neither good nor bad."""
    filled = round(max(0.0, min(share, 1.0)) * 6)
    return Text("━" * filled, style="blue") + Text("━" * (6 - filled), style="bright_black")


def _replicas(frame: Frame) -> Group:
    head = _labelled()
    head.add_row("Replicas", f"{frame.replicas_ready} ready, {frame.replicas_wanted} wanted")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
    for _ in range(4):
        table.add_column(no_wrap=True)
    for replica in frame.replicas:
        table.add_row(*_replica(replica))
    return Group(head, table) if frame.replicas else Group(head)


def _replica(replica: ReplicaFrame) -> tuple[Text, ...]:
    phase = Text(replica.phase, style=_PHASE_STYLES.get(replica.phase, ""))
    if replica.restarts:
        phase.append(f" ↻{replica.restarts}", style="yellow")
    if replica.running is None or replica.kv_usage is None:
        return (
            Text(f"  {replica.id}"),
            phase,
            Text(replica.message or clock(replica.age_s), style="dim"),
            Text(),
            Text(),
        )
    work = Text(f"{replica.running} running, {replica.waiting or 0} waiting")
    return Text(f"  {replica.id}"), phase, work, bar(replica.kv_usage, 6), Text(f"KV {100 * replica.kv_usage:.0f} %")


def _decisions(frame: Frame) -> Table:
    table = _labelled()
    if frame.now is not None:
        table.add_row("Now", Text(frame.now.message))
    if frame.decisions:
        table.add_row(
            "Last", Text.assemble((frame.decisions[0].message, "bold"), (f"  {_hour(frame.decisions[0].time)}", "dim"))
        )
    for index, earlier in enumerate(frame.decisions[1 : 1 + _NUM_EARLIER]):
        table.add_row("" if index else "Before", Text(f"{earlier.message}  {_hour(earlier.time)}", style="dim"))
    return table


def _hour(time: str) -> str:
    """The clock part of an RFC 3339 time."""
    return time[11:19]


def _endpoint(frame: Frame) -> Group:
    table = _labelled()
    if frame.endpoint is None:
        table.add_row("Endpoint", Text("not open yet", style="dim"))
        return Group(table)
    table.add_row("Endpoint", Text(f"{frame.endpoint}/v1", style="bold"))
    body = f'{{"model":"{frame.model}","messages":[{{"role":"user","content":"Hello"}}]}}'
    curl = f"curl {frame.endpoint}/v1/chat/completions -H content-type:application/json \\\n  -d '{body}'"
    return Group(table, Text(curl, style="dim", overflow="fold"))
