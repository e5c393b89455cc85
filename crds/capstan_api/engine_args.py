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


class Quantization(StrEnum):
    """How linear layers are held, rounded while loading. What multiplies them takes activations in BFloat16."""

    NONE = "None"
    INT8 = "Int8"
    INT8_DYNAMIC = "Int8Dynamic"
    INT4_GROUP32 = "Int4Group32"
    INT4_GROUP64 = "Int4Group64"
    INT4_GROUP128 = "Int4Group128"


class MetricsCompatibility(StrEnum):
    """Extra metric names beside `capstan_*`."""

    NONE = "None"
    VLLM = "VLLM"


class SloClass(BaseModel):
    """One SLO class as engine and gateway see it. A request is good when it meets every threshold that is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=63, description="Value of the label `slo_class` in metrics.")
    priority: int = Field(default=0, description="Higher is admitted first and preempted last.")
    ttft_seconds: float | None = Field(default=None, gt=0, description="Threshold of the time to first token.")
    tpot_seconds: float | None = Field(default=None, gt=0, description="Threshold of the time per output token.")
    header_value: str | None = Field(default=None, description="Value of the class header; the name when absent.")
    model_alias: str | None = Field(default=None, description="Served model name that selects this class.")


class EngineArgs(BaseModel):
    """Configuration of one engine. Field names are also the JSON keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="Directory with config.json, *.safetensors and tokenizer.json.")
    served_model_names: tuple[str, ...] = Field(min_length=1, description="Names that requests may use.")
    precision: Precision = Field(
        default=Precision.AUTO,
        description="Data type of weights, activations and KV cache; Auto takes the checkpoint's own.",
    )
    quantization: Quantization = Field(
        default=Quantization.NONE,
        description="How linear layers are held: in the precision, or rounded to fewer bits while loading, with "
        "activations rounded to 8 bits too (Int8Dynamic and Int4GroupN) or not (Int8).",
    )
    max_model_len: int = Field(default=8192, ge=2, description="Longest prompt plus output, in tokens.")
    envelope: Envelope = Field(description="Range of the live batch limits.")
    block_size: int = Field(default=16, ge=1, le=256, description="KV slots in one block.")
    kv_cache_bytes: int | None = Field(
        default=None, ge=1, description="Memory for the KV cache; absent: what everything else leaves of the memory."
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Of a CPU, what the engine may take in all; absent: as much as it needs, with 512 MiB of KV cache. "
        "On a GPU it is what is free there.",
    )
    prefix_caching: bool = Field(default=True, description="Reuse KV blocks of prompts that begin alike.")
    max_queued_requests: int = Field(default=256, ge=0, description="Waiting requests beyond which 429 is answered.")
    slo_classes: tuple[SloClass, ...] = Field(
        default=(SloClass(name="default"),), description="The first takes the requests that name none."
    )
    drain_timeout_seconds: float = Field(
        default=60, ge=0, description="Time to finish what was accepted after SIGTERM."
    )
    metrics_compatibility: MetricsCompatibility = Field(
        default=MetricsCompatibility.NONE, description="Extra metric names beside `capstan_*`."
    )
    step_log: Path | None = Field(default=None, description="CSV file that gets one line per step.")
    num_threads: int | None = Field(
        default=None,
        ge=1,
        description="Most CPU threads of the engine core; never more than its processors and its CPU quota are.",
    )
    cpus: tuple[int, ...] = Field(
        default=(), description="Processors to run on; empty means wherever the system puts it."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=names.PORT_ENGINE, ge=0, le=65535, description="API port; 0 takes a free one.")
    admin_port: int = Field(
        default=names.PORT_ENGINE_ADMIN, ge=0, le=65535, description="Admin port; 0 takes a free one."
    )

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

    served_model_names: tuple[str, ...] = Field(min_length=1, description="Names that requests may use.")
    slo_classes: tuple[SloClass, ...] = Field(
        default=(SloClass(name="default"),), description="The first takes the requests that name none."
    )
    prefix_affinity: bool = Field(
        default=True, description="Prefer the replica that has the prompt's beginning cached."
    )
    max_held_requests: int = Field(default=200, ge=0, description="Requests that wait while no replica is ready.")
    hold_timeout_seconds: float = Field(default=120, gt=0, description="Longest such wait.")
    drain_timeout_seconds: float = Field(
        default=60, ge=0, description="Time to finish what was accepted after SIGTERM."
    )
    cpus: tuple[int, ...] = Field(default=(), description="Processors to run on; empty means any.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=names.PORT_GATEWAY, ge=0, le=65535, description="API port; 0 takes a free one.")
    admin_port: int = Field(
        default=names.PORT_GATEWAY_ADMIN, ge=0, le=65535, description="Admin port; 0 takes a free one."
    )
