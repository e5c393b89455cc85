"""The command line of the front end, and what it makes of it: one validated `EngineArgs`.

A configuration file as the operator writes it, or just a model directory with sensible defaults; either can be
overridden by options. Knows nothing of what the settings do.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capstan_api.engine_args import EngineArgs, Quantization
from capstan_engine.errors import ConfigurationError, ModelError


def parser() -> argparse.ArgumentParser:
    """Options of `python -m capstan_engine`."""
    made = argparse.ArgumentParser(prog="capstan_engine", description="Serve one model over an OpenAI-compatible API.")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="FILE", help="EngineArgs as JSON")
    source.add_argument("--model", type=Path, metavar="DIR", help="a model directory; everything else by default")
    made.add_argument("--served-model-name", action="append", metavar="NAME", help="name in requests; may be repeated")
    made.add_argument("--host")
    made.add_argument("--port", type=int, help="API port; 0 takes a free one")
    made.add_argument("--admin-port", type=int, help="admin port; 0 takes a free one")
    made.add_argument("--max-model-len", type=int, metavar="TOKENS", help="longest prompt plus output")
    made.add_argument("--max-sequences", type=int, metavar="N", help="requests that run at the same time")
    made.add_argument("--max-batched-tokens", type=int, metavar="TOKENS", help="tokens of one step")
    made.add_argument("--kv-cache-mib", type=int, metavar="MIB", help="memory of the KV cache")
    made.add_argument("--precision", choices=["Auto", "Float32", "BFloat16"])
    made.add_argument("--quantization", choices=[each.value for each in Quantization])
    made.add_argument("--num-threads", type=int, metavar="N", help="most CPU threads of the engine core")
    made.add_argument("--step-log", type=Path, metavar="FILE", help="write one CSV line per step")
    made.add_argument("--metrics-compat", choices=["vllm"], help="expose vllm:* metric names too")
    made.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    return made


def engine_args(options: argparse.Namespace) -> EngineArgs:
    """The configuration file or the defaults for a model, with what the command line overrides.

    Raises `ConfigurationError` or `ModelError` for a file that cannot be read, `ValidationError` for wrong values.
    """
    settings = _standalone(options.model) if options.config is None else _from_file(options.config)
    overrides = {
        "served_model_names": options.served_model_name,
        "host": options.host,
        "port": options.port,
        "admin_port": options.admin_port,
        "max_model_len": options.max_model_len,
        "kv_cache_bytes": None if options.kv_cache_mib is None else options.kv_cache_mib << 20,
        "precision": options.precision,
        "quantization": options.quantization,
        "num_threads": options.num_threads,
        "step_log": None if options.step_log is None else str(options.step_log),
        "metrics_compatibility": {"vllm": "VLLM"}.get(options.metrics_compat),
    }
    settings |= {name: value for name, value in overrides.items() if value is not None}
    envelope = {"max_sequences": options.max_sequences, "max_batched_tokens": options.max_batched_tokens}
    changed = {name: value for name, value in envelope.items() if value is not None}
    if changed:
        settings["envelope"] = dict(settings.get("envelope") or {}) | changed
    return EngineArgs.model_validate_json(json.dumps(settings))


def _standalone(model: Path) -> dict[str, Any]:
    """Settings of a server that somebody starts by hand: as much context as the model has, up to 8192 tokens."""
    config = model / "config.json"
    try:
        longest = json.loads(config.read_bytes()).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{config}: not readable: {error}") from error
    return {
        "model": str(model),
        "served_model_names": [model.resolve().name],
        "max_model_len": min(8192, longest) if isinstance(longest, int) else 8192,
        "envelope": {
            "min_sequences": 1,
            "max_sequences": 64,
            "min_batched_tokens": 64,
            "max_batched_tokens": 2048,
        },
    }


def _from_file(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{path}: expected a JSON object")
    return settings


def explained(error: ValidationError) -> list[str]:
    """One line per mistake: field, then what is wrong with it."""
    lines = []
    for mistake in error.errors(include_url=False):
        field = ".".join(map(str, mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{field}: {message}" if field else message)
    return lines
