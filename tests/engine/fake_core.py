"""A core process around the fake runner: what `python -m capstan_engine.core` is, without torch and without a model.

A model directory called `broken` cannot be loaded. In place of start-up seconds it reports the number of threads that
it was built under.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from capstan_api.engine_args import EngineArgs
from capstan_engine import core
from capstan_engine.errors import ModelError
from capstan_engine.messages import Loading

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import fake_engine


def build(args: EngineArgs, progress: Callable[[Loading], None]) -> core.Built:
    if args.model.name == "broken":
        raise ModelError("config.json: hidden_size is missing")
    return fake_engine(args), {"OMP_NUM_THREADS": float(os.environ["OMP_NUM_THREADS"])}


if __name__ == "__main__":
    sys.exit(core.main(build=build))
