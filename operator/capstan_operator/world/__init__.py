"""Worlds: where replicas and gateway run. `base.World` is the seam, each package beside it implements it."""
