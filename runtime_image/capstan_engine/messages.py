"""What the API front end and the engine core say to each other: plain structs, packed as MessagePack.

Knows no socket, no tensor and no text: the core speaks token ids only, the front end owns tokenizer and strings.
Stop *strings* are therefore the front end's business (it aborts the request when it sees one); stop *ids* the core's.
"""

import enum

import msgspec


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen. Already validated and completed with defaults by the front end.

    `seed` is always set: the same seed gives the same tokens whatever else is in the batch.
    """

    seed: int
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    """End-of-sequence ids included, unless the request ignores them."""
    logprobs: int | None = None
    """Number of most likely alternatives per output token; 0 gives the chosen token's only; None gives none."""
    prompt_logprobs: int | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: of the token that stands there, and of the most likely ones.

    `ids[0]` is the token itself with `rank` (1 = most likely); the others follow in falling order. Values come from the
    model's raw logits, before penalties and temperature.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int


# --- front end to core -------------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start a request. Times are seconds of the machine's monotonic clock, which both processes share."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    priority: int = 0
    """Higher first."""
    slo_class: str = "default"
    deadline: float | None = None
    """The request ends with `DEADLINE` at the first step boundary after this moment."""
    first_token_due: float | None = None
    """From this moment on its first token is late; it yields to those that can be in time as soon as it cannot. None:
    never."""
    cache_salt: str = ""
    """Requests share prefix blocks only under the same salt."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget these requests and give their blocks back. Unknown ids are ignored; no output follows."""

    request_ids: list[str]


class SetLimits(msgspec.Struct, frozen=True, tag=True):
    """Apply limits at the next step boundary. The front end has already checked them against the envelope."""

    max_sequences: int
    max_batched_tokens: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the core process; the front end has drained before."""


ToCore = Submit | Abort | SetLimits | Shutdown


# --- core to front end -------------------------------------------------------------------------------------------


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one request, and its end when `finish_reason` is set."""

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    """One entry per token in `token_ids`, when asked for."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """All prompt positions at once, with the first output; the first entry is None."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The id that ended the request with `STOP`; it is the last of `token_ids` too."""
    error: str | None = None
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache, with the first output."""
    first_scheduled_time: float | None = None
    """When the first step that computed this request began, with the first output."""


class StepSample(msgspec.Struct, frozen=True, array_like=True):
    """One step as the latency model sees it; one line of the step log."""

    number: int
    """Counts from 1 since the engine started."""
    time: float
    """Monotonic seconds at the step's end."""
    seconds: float
    """Duration: plan, launch, wait and commit; of overlapping steps, the part after the last one's end."""
    prefill_tokens: int
    decode_sequences: int
    context_tokens: int
    """Sum of the context lengths of the decoding sequences."""
    attention_pairs: int
    """Query-key pairs of the prefill chunks: k (p + k/2) for a chunk of k tokens at depth p."""


class CoreState(msgspec.Struct, frozen=True):
    """Gauges and monotonic counters of the core, sent with every batch of outputs and at least once a second."""

    time: float
    heartbeat: int
    steps: int
    running: int
    waiting: int
    prefill_backlog: int
    """Prompt tokens of accepted requests that are not computed yet."""
    blocks_total: int
    blocks_held: int
    blocks_cached: int
    """Free blocks that still hold a reusable prefix."""
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    busy_seconds: float
    max_sequences: int
    max_batched_tokens: int


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Start-up has come this far. Sent at every step of it, so that silence means that nothing moves."""

    phase: str
    """`Loading` or `Warming`, as in `capstan_api.startup`."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0 where the amount is not known."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The core has loaded the model and may be given requests."""

    num_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int
    figures: dict[str, int | bool]
    """What the model takes of memory: `capstan_api.footprint.MemoryFigures`."""
    startup_seconds: dict[str, float]
    """Start-up time by phase: import, load, warm_up."""
    state: CoreState


class Update(msgspec.Struct, frozen=True, tag=True):
    """Everything that happened since the last update."""

    outputs: list[Output]
    steps: list[StepSample]
    state: CoreState


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request that the core could not take, for instance one larger than the KV cache; before its first output."""

    request_id: str
    reason: str
    """`too_large`, `queue_full`, or `invalid` for one that makes no sense."""
    message: str
    retry_after_seconds: float | None = None
    param: str | None = None
    """The request field that is wrong, where there is one."""


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The core is ending because of an error; every open request has failed."""

    message: str
    kind: str = "EngineDead"
    """Name of the error in `capstan_engine.errors`: ModelError or ConfigurationError when loading failed."""


ToFrontEnd = Loading | Ready | Update | Refused | Fatal
