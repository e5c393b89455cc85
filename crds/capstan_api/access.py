"""The access log: one line for each request that a gateway answered, and what the simulator reads back from it.

Says when a request came, how long it was and how it was served; never what was asked or answered.
"""

import re
from typing import Final, NamedTuple

_LINE: Final = re.compile(
    r"arrived=(?P<arrived>\d+\.\d+) class=(?P<slo_class>\S+) prompt=(?P<prompt>\d+) output=(?P<output>\d+)"
    r" ttft_ms=(?P<ttft>-|\d+\.\d+) tpot_ms=(?P<tpot>-|\d+\.\d+) outcome=(?P<outcome>\w+)"
)


class Access(NamedTuple):
    """One request. Latencies are seconds, None where they could not be seen."""

    arrived_at: float
    """Epoch seconds."""
    slo_class: str
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    outcome: str

    def line(self) -> str:
        """As it stands in the log, behind whatever the log itself puts before it."""
        return (
            f"arrived={self.arrived_at:.3f} class={self.slo_class} prompt={self.prompt_tokens}"
            f" output={self.output_tokens} ttft_ms={_milliseconds(self.ttft_s)} tpot_ms={_milliseconds(self.tpot_s)}"
            f" outcome={self.outcome}"
        )

    @classmethod
    def found(cls, line: str) -> "Access | None":
        """The request that a line of a log tells of; None when it tells of something else."""
        match = _LINE.search(line)
        if match is None:
            return None
        return cls(
            arrived_at=float(match["arrived"]),
            slo_class=match["slo_class"],
            prompt_tokens=int(match["prompt"]),
            output_tokens=int(match["output"]),
            ttft_s=_seconds(match["ttft"]),
            tpot_s=_seconds(match["tpot"]),
            outcome=match["outcome"],
        )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def _seconds(milliseconds: str) -> float | None:
    return None if milliseconds == "-" else float(milliseconds) / 1000
