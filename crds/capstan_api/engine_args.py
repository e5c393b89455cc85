"""`EngineArgs`: the whole configuration of one engine process, as the operator writes it and the engine reads it.

The operator renders it to JSON (a ConfigMap in a cluster, a file in the `processes` world); the engine validates it
once and is then done with configuration: its parts receive the values they need, never this object.
Secrets are not part of it: the admin token travels in the environment (`names.ENV_ADMIN_TOKEN`).
"""

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from capstan_api import names
from capstan_api.limits import Envelope


class Precision(StrEnum):
    """Data type of weights, activations and KV cache. `Auto` takes the checkpoint's own."""

    AUTO = "Auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class MetricsCompatibility(StrEnum):
    """Extra metric names beside `capstan_*`."""

    NONE = "None"
    VLLM = "VLLM"


class SloClass(BaseModel):
    """One SLO class as engine and gateway see it. A request is good when it meets every threshold that is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    priority: int = Field(default=0, description="Higher is admitted first and preempted last.")
    ttft_seconds: float | None = Field(default=None, gt=0)
    tpot_seconds: float | None = Field(default=None, gt=0)
    header_value: str | None = Field(default=None, description="Value of the class header; the name when absent.")
    model_alias: str | None = Field(default=None, description="Served model name that selects this class.")


class EngineArgs(BaseModel):
    """Configuration of one engine. Field names are also the JSON keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="Directory with config.json, *.safetensors and tokenizer.json.")
    served_model_names: tuple[str, ...] = Field(min_length=1, description="Names that requests may use.")
    precision: Precision = Precision.AUTO
    max_model_len: int = Field(default=8192, ge=2, description="Longest prompt plus output, in tokens.")
    envelope: Envelope
    block_size: int = Field(default=16, ge=1, le=256, description="KV slots in one block.")
    kv_cache_bytes: int = Field(default=512 << 20, ge=1, description="Memory for the KV cache.")
    prefix_caching: bool = True
    max_queued_requests: int = Field(default=256, ge=0, description="Waiting requests beyond which 429 is answered.")
    slo_classes: tuple[SloClass, ...] = (SloClass(name="default"),)
    drain_timeout_seconds: float = Field(default=60, ge=0)
    metrics_compatibility: MetricsCompatibility = MetricsCompatibility.NONE
    step_log: Path | None = Field(default=None, description="CSV file that gets one line per step.")
    num_threads: int = Field(default=1, ge=1, description="CPU threads of the engine core.")
    cpus: tuple[int, ...] = Field(
        default=(), description="Processors to run on; empty means wherever the system puts it."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=names.PORT_ENGINE, ge=0, le=65535)
    admin_port: int = Field(default=names.PORT_ENGINE_ADMIN, ge=0, le=65535)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        class_names = [c.name for c in self.slo_classes]
        if not class_names:
            raise ValueError("slo_classes: at least one class is needed")
        if len(set(class_names)) != len(class_names):
            raise ValueError("slo_classes: names must be unique")
        if self.max_model_len < self.block_size:
            raise ValueError("max_model_len must be at least block_size")
        return self


class GatewayArgs(BaseModel):
    """Configuration of one gateway process. Its list of replicas arrives later, over the admin port."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    served_model_names: tuple[str, ...] = Field(min_length=1)
    slo_classes: tuple[SloClass, ...] = (SloClass(name="default"),)
    prefix_affinity: bool = True
    max_held_requests: int = Field(default=200, ge=0)
    hold_timeout_seconds: float = Field(default=120, gt=0)
    drain_timeout_seconds: float = Field(default=60, ge=0)
    cpus: tuple[int, ...] = ()
    host: str = "127.0.0.1"
    port: int = Field(default=names.PORT_GATEWAY, ge=0, le=65535)
    admin_port: int = Field(default=names.PORT_GATEWAY_ADMIN, ge=0, le=65535)
