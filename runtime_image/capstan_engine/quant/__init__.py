"""Quantization formats: one file each, detected from the checkpoint's own config."""

from collections.abc import Mapping
from typing import Any

from capstan_engine.errors import UnsupportedModel
from capstan_engine.quant.format import Format, LinearSpec
from capstan_engine.quant.plain import Plain

__all__ = ["Format", "LinearSpec", "choose"]

_FORMATS: dict[str, Format] = {"plain": Plain()}


def choose(config: Mapping[str, Any]) -> Format:
    """The format that `config.json` names. Raises `UnsupportedModel` for one that is not implemented."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return _FORMATS["plain"]
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    raise UnsupportedModel(
        f"config.json: quantization_config asks for {method or 'an unnamed method'!r}, which is not supported; "
        f"use a checkpoint without quantization"
    )
