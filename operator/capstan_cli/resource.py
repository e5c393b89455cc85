"""The InferenceDeployment that a person named: a YAML file, or a model directory that gets a default one."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from capstan_api.manifest import InvalidResource
from capstan_api.v1alpha1 import InferenceDeployment, load, parse
from capstan_cli.errors import InputError
from capstan_operator.source import FileSource

# Of `metadata.name`.
_LONGEST_NAME: Final = 40


def from_file(path: Path) -> InferenceDeployment:
    """Read and validate `path`; raises `InputError` with one line per fault."""
    try:
        return load(path)
    except InvalidResource as error:
        faults = str(error).splitlines()
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise InputError(f"{path} is not a valid InferenceDeployment:{lines}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def named(path: Path) -> InferenceDeployment:
    """The resource that `path` stands for: what its YAML says, or the default for a model directory."""
    return for_model(path) if path.is_dir() else from_file(path)


def source(path: Path) -> Callable[[], InferenceDeployment]:
    """What the operator asks every turn: the file, read again when it changes, or the default for a directory.

    Raises `InputError` when there is no valid resource to begin with.
    """
    first = named(path)
    return (lambda: first) if path.is_dir() else FileSource(path)


def for_model(directory: Path) -> InferenceDeployment:
    """A default resource for a Hugging Face model directory: one replica, one class, lenient thresholds."""
    return parse(default_document(directory))


def default_document(directory: Path) -> dict[str, Any]:
    """The YAML document behind `for_model`: only what differs from the schema's defaults. Raises `InputError`."""
    config = _config(directory)
    words = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-")
    # The name of a resource begins with a letter.
    name = (words if words[:1].isalpha() else f"model-{words}")[:_LONGEST_NAME].strip("-")
    document: dict[str, Any] = {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"uri": directory.resolve().as_uri()}},
            "slos": [
                {
                    "name": "interactive",
                    "ttft": {"percentile": 95, "thresholdMilliseconds": 2000},
                    "tpot": {"percentile": 95, "thresholdMilliseconds": 100},
                }
            ],
            "scaling": {"minReplicas": 1, "maxReplicas": 1},
        },
    }
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and 16 <= longest < 8192:
        document["spec"]["model"]["maxModelLength"] = longest
    return document


def as_yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{directory} has no config.json; give a Hugging Face model directory (config.json, *.safetensors, "
            "tokenizer.json) or a YAML file with an InferenceDeployment"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object")
    return config
