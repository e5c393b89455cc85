"""Which format a model is held in: what its checkpoint says, and what was asked for."""

from collections.abc import Mapping
from typing import Any, Final

from capstan_engine.errors import UnsupportedModel
from capstan_engine.quant.format import Format
from capstan_engine.quant.int4 import Int4
from capstan_engine.quant.int8 import Int8, Int8Dynamic
from capstan_engine.quant.plain import Plain

_FORMATS: Final[Mapping[str, Format]] = {
    "None": Plain(),
    "Int8": Int8(),
    "Int8Dynamic": Int8Dynamic(),
    "Int4Group32": Int4(32),
    "Int4Group64": Int4(64),
    "Int4Group128": Int4(128),
}


def choose(config: Mapping[str, Any], quantization: str = "None") -> Format:
    """The format called `quantization`, for a checkpoint that `config.json` says is not quantized yet.

    Raises `UnsupportedModel` for one that is.
    """
    stored = config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, Mapping) else None
        raise UnsupportedModel(
            f"config.json: quantization_config asks for {method or 'an unnamed method'!r}, which is not supported; "
            f"use a checkpoint without quantization"
        )
    return _FORMATS[quantization]
