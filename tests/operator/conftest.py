"""Test folders are no packages; the modules beside this file are imported by name, and fixtures of them lent to all."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kubernetes_house import house as house
