"""The reference manual as Markdown, written from the contract itself.

Knows how tables look and repeats no fact: fields, defaults, bounds and sentences come from the models, series from the
metric catalogue, names from `names`.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from capstan_api import limits, metrics, names, replicas
from capstan_api.crd import NOTICE, definition, schema
from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.structural import Schema, structural

_HEADERS = (
    (
        names.HEADER_SLO_CLASS,
        "client",
        "SLO class; without it the model alias or the first class counts.",
    ),
    (names.HEADER_DEADLINE_MS, "client", "Milliseconds after which the answer is of no use; the request ends then."),
    (names.HEADER_REQUEST_ID, "client, answer", "Identifies the request in logs; made when absent, always returned."),
    (names.HEADER_WAITED_MS, "gateway", "Milliseconds already waited at the gateway, so that the engine ages fairly."),
    (names.HEADER_REPLICA, "answer", "The replica that answered."),
    (names.HEADER_TTFT_MS, "engine", "Time to first token of an answer that was not streamed, in milliseconds."),
    (names.HEADER_TPOT_MS, "engine", "Time per output token of an answer that was not streamed, in milliseconds."),
)
_PORTS = (
    (names.PORT_GATEWAY, "gateway", "OpenAI-compatible API, health, metrics"),
    (names.PORT_GATEWAY_ADMIN, "gateway", "admin API: replica table, configuration, drain, state"),
    (names.PORT_ENGINE, "engine", "OpenAI-compatible API, health, metrics"),
    (names.PORT_ENGINE_ADMIN, "engine", "admin API: batch limits, drain, state, steps"),
)
_ENVIRONMENT = (
    (names.ENV_ADMIN_TOKEN, "Bearer token of the admin APIs. Without it they refuse everything but health."),
    (names.ENV_API_KEY, "Bearer key that clients must present. Without it the door is open."),
)
_BODIES: tuple[type[BaseModel], ...] = (
    limits.LimitsState,
    limits.LimitsPatch,
    replicas.ReplicaTableUpdate,
    replicas.ReplicaTableStatus,
    replicas.GatewayState,
)


def render() -> str:
    """The whole manual."""
    resource = schema()["properties"]
    parts = [
        f"<!-- {NOTICE} -->",
        "# Reference",
        f"`{names.KIND}` in `{names.API_VERSION}` (`kubectl get {names.SHORT_NAME}`), the arguments of engine and"
        " gateway, the metrics, and the names that parts agree on.",
        "## spec",
        "Default *required* means that the field must be given. A field of an absent object takes its default.",
        _fields(resource["spec"], "spec"),
        "### Rules",
        "Checked by the API server, and by `capstan` where there is none.",
        _table(("At", "Rule", "CEL"), ((f"`{at}`", text, f"`{_cell(cel)}`") for at, text, cel in _rules(schema()))),
        "## status",
        "Written by the operator only; absent until first observed.",
        _fields(resource["status"], "status", observed=True),
        "## Columns of kubectl get",
        _table(("Column", "Shown", "Field", "Meaning"), _columns()),
        "## Metrics",
        *_metrics("Engine", metrics.Engine),
        *_metrics("Gateway", metrics.Gateway),
        *_metrics("Operator", metrics.Operator),
        "## Engine arguments",
        "The JSON file of `python -m capstan_engine --config FILE`. The operator writes it.",
        _fields(structural(EngineArgs), ""),
        "## Gateway arguments",
        "The JSON file of `python -m capstan_gateway --config FILE`. The operator writes it. "
        "`PUT /admin/config` replaces it while the gateway serves, all but `cpus`, `host` and the ports.",
        _fields(structural(GatewayArgs), ""),
        "## Admin API bodies",
        *(part for body in _BODIES for part in (f"### {body.__name__}", _summary(body), _fields(structural(body), ""))),
        "## HTTP headers",
        _table(("Header", "Set by", "Meaning"), ((f"`{name}`", by, text) for name, by, text in _HEADERS)),
        "## Ports",
        _table(("Port", "Part", "Serves"), ((str(port), part, text) for port, part, text in _PORTS)),
        "## Environment",
        _table(("Variable", "Meaning"), ((f"`{name}`", text) for name, text in _ENVIRONMENT)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(root: Schema, prefix: str, *, observed: bool = False) -> str:
    """A table of all fields below `root`. `observed` leaves out defaults, which status has none of."""
    head = ("Field", "Type", "Bounds", "Meaning") if observed else ("Field", "Type", "Default", "Bounds", "Meaning")
    rows = []
    for path, node, required in _walk(root, prefix):
        cells = [f"`{path}`", _type(node), _default(node, required), _bounds(node), _cell(node.get("description", ""))]
        rows.append([*cells[:2], *cells[3:]] if observed else cells)
    return _table(head, rows)


def _walk(node: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Every field below `node` in order of declaration: its path, its schema, and whether it must be given."""
    for name, child in node.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        yield below, child, name in node.get("required", [])
        yield from _walk(child, below)
        yield from _walk(child.get("items", {}), f"{below}[]")


def _type(node: Schema) -> str:
    kind = node.get("type", "any")
    if kind == "array" and "items" in node:
        return f"list of {_type(node['items'])}"
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    return str(node.get("format") if node.get("format") in ("path", "date-time") else kind)


def _default(node: Schema, required: bool) -> str:
    if required:
        return "*required*"
    value = node.get("default")
    if value is None or (isinstance(value, dict) and node.get("type") == "object"):
        return ""
    return f"`{_literal(value)}`"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_literal(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(node: Schema) -> str:
    parts = []
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ):
        if low in node and high in node:
            span = f"{node[low]}" if node[low] == node[high] else f"{node[low]} – {node[high]}"
            parts.append(f"{span}{unit}")
        elif low in node:
            parts.append(f"≥ {node[low]}{unit}")
        elif high in node:
            parts.append(f"≤ {node[high]}{unit}")
    if "exclusiveMinimum" in node:
        parts.append(f"> {node['exclusiveMinimum']}")
    if "pattern" in node:
        parts.append(f"`{_cell(node['pattern'])}`")
    return ", ".join(parts)


def _rules(node: Schema, path: str = "") -> Iterator[tuple[str, str, str]]:
    for rule in node.get("x-kubernetes-validations", ()):
        yield path or ".", rule["message"], rule["rule"]
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from _rules(node["items"], f"{path}[]")


def _columns() -> Iterator[tuple[str, str, str, str]]:
    for column in definition()["spec"]["versions"][0]["additionalPrinterColumns"]:
        shown = "with `-o wide`" if column.get("priority") else "always"
        yield column["name"], shown, f"`{column['jsonPath']}`", column["description"]


def _metrics(title: str, part: type) -> tuple[str, str, str]:
    rows = (
        (
            f"`{metric.name}`",
            metric.kind.value + (f", bounds include {metric.slo_bounds.value.upper()}" if metric.slo_bounds else ""),
            ", ".join(f"`{label}`" for label in metric.labels),
            _cell(metric.help),
            f"`{metric.vllm}`" if metric.vllm else "",
        )
        for metric in metrics.catalogue(part)
    )
    table = _table(("Series", "Kind", "Labels", "Meaning", "vLLM's name"), rows)
    return f"### {title}", inspect.getdoc(part) or "", table


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())
