"""What tests of compiled kernels share: every level of instructions that this processor has."""

from collections.abc import Iterator

import pytest

from capstan_engine.kernels.native import coding, products
from capstan_engine.kernels.native import library as module
from capstan_engine.kernels.native.library import LEVELS, compiled, load, processor_flags


@pytest.fixture(scope="module", params=LEVELS, ids=lambda level: level.name)
def at_each_level(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of the kernels come from the library of this level."""
    if lacking := sorted(request.param.flags - processor_flags()):
        pytest.skip(f"this processor lacks {', '.join(lacking)}")
    found = load(compiled(request.param))
    with pytest.MonkeyPatch.context() as patch:
        for user in (module, products, coding):
            patch.setattr(user, "library", lambda: found)
        yield
