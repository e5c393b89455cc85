"""Known autoscalers as policies of the simulator, each rewritten from its published law.

They are references to measure the real law against and no options of the product. One file per family; `registry` knows
them by name. What the laws share is only what their owners share: a scale-down window (`windows`) and the facts of the
case (`capacity`).
"""

from capstan_sim.policies.registry import KNOBS, PEERS, STATIC, build

__all__ = ["KNOBS", "PEERS", "STATIC", "build"]
