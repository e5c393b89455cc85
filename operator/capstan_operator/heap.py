"""How a process that decides in every second collects its garbage.

A full collection looks at all that was imported, 100,000 objects for some 60 ms, in the middle of somebody's turn. What
was imported stays for good, so that none of it has to be looked at again; and a turn makes and drops thousands of
objects without any cycles, of which fewer collections find as much.
"""

import gc
from typing import Final

_NEW_OBJECTS: Final = 10_000


def settle() -> None:
    """Take everything that is there now as staying, and look for cycles among new objects less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
