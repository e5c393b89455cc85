"""Makes `helm` and the modules beside this file importable."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `helm` is a part of the project and no installed package; modules beside this file are imported by name.
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
