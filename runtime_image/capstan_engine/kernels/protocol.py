"""What a kernel backend offers. Nothing here knows a request, a model or a configuration."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import torch

from capstan_engine.kernels.draw import Draw
from capstan_engine.kernels.plan import AttentionPlan, KvLayout, QkNorm, Span
from capstan_engine.kernels.stage import Stage

Linear = Callable[[torch.Tensor], torch.Tensor]
"""`[T, K] -> [T, N]`: a weight, packed as its backend likes it, with its bias."""

Plan = TypeVar("Plan", bound=AttentionPlan)
Rules = TypeVar("Rules")


class Backend(Protocol[Plan, Rules]):
    """The names that a backend module has.

    `Plan` is the backend's own kind of attention plan, `Rules` that of the rules for drawing tokens. What is planned
    for a step may be used once its stage is sent.
    """

    @property
    def reads_unused_slots(self) -> bool:
        """Whether slots of a used block that no token has must hold numbers."""

    def new_stage(self) -> Stage:
        """The way to the backend's device."""

    def round_up(self, num_tokens: int) -> int:
        """The number of rows to compute for `num_tokens` wanted ones: few distinct sizes, little more than asked."""

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """`weight` `[N, K]` and `bias` `[N]` made ready for products with `[T, K]` activations of the same dtype."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x / sqrt(mean(x²) + eps) * weight` over the last dimension; reduced in float32."""

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Add `delta` to the residual stream `x` in place, both `[T, M]`, and return `x`'s norm."""

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, 2F] -> [T, F]`: silu of the first half times the second."""

    def plan_attention(
        self, spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype, stage: Stage
    ) -> dict[int | None, Plan]:
        """What one step's attention needs in every layer, once per distinct sliding window.

        Spans of one token come first, in falling order of `start`.
        """

    def rotate_and_write_kv(
        self,
        heads: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norm: QkNorm | None,
        cache: torch.Tensor,
        plan: Plan,
    ) -> None:
        """From a projection to what attention reads.

        `heads` `[T or more, H + 2G, D]` are the step's queries, keys and values. Queries and keys are normed, where
        there is a norm, and turned by the rotary embedding: `cos` and signed `sin` are `[T or more, 1, D]`. Keys and
        values go into their slots of `cache`, queries stay where they are.
        """

    def attention(
        self,
        q: torch.Tensor,
        cache: torch.Tensor,
        plan: Plan,
        scale: float,
        *,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Causal attention of `q` `[T, H, D]` over the paged `cache`: `[T, H·D]`.

        `soft_cap` bounds the scaled scores s to `cap · tanh(s / cap)` (Gemma 2). `sinks` `[H]` are scores of one more
        key per head, whose value is zero (gpt-oss).
        """

    def plan_draws(self, draws: Sequence[Draw], stage: Stage) -> Rules:
        """The rules of n rows, for `choose_tokens`."""

    def choose_tokens(self, logits: torch.Tensor, draws: Rules, drawn: torch.Tensor) -> torch.Tensor:
        """int64 `[n]`: a token id for each row of `logits` `[n, V]`, which stay as they are.

        `drawn` int64 `[m]` are the tokens that penalties refer to.
        -1 where a row's largest logit is not finite. Only tokens of positive weight are drawn: the first in the
        vocabulary's order at which the sum of weights exceeds `uniforms(seed, position)` of the whole.
        """


class RecordableBackend(Backend[Plan, Rules], Protocol[Plan, Rules]):
    """A backend for a device that can record what it is given to do, and repeat it.

    That is a matter of addresses: a step that is repeated reads what was put at those of the step that was recorded.
    """

    def plan_decodes(
        self,
        spans: Sequence[Span],
        layout: KvLayout,
        windows: Sequence[int | None],
        stage: Stage,
        num_rows: int,
        max_context: int,
    ) -> dict[int | None, Plan]:
        """`plan_attention` for spans of one token, in tensors whose sizes depend on `num_rows` and `max_context` alone.

        Contexts of `max_context` tokens at most; rows beyond the spans are padding. `plan_draws` without penalties and
        biases, and `new_stage`, keep addresses in the same way.
        """


Kernels: TypeAlias = Backend[Any, Any]
"""Any backend, for those who only hand its plans back to it."""

RecordableKernels: TypeAlias = RecordableBackend[Any, Any]
