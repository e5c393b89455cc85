"""The bench of the whole engine runs through, in small, so that it does not fail first where there is a GPU."""

import pytest
from checkpoints import SHIPPED
from ours import Ours
from peers_continuous import NAME
from torch.autograd import DeviceType

from capstan_engine.models.families import read_spec
from engine import SMALL, cases, computing

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_every_case_is_measured_and_compared() -> None:
    found = [row for case in cases(SHIPPED, SMALL) for row in case.rows()]
    assert [row["peer"] for row in found] == ["copy of the weights", "matmul", "matmul", "matmul and copy", NAME]
    assert all(row["ours"] > 0 and row["peer_value"] > 0 and row["ratio"] > 0 for row in found)
    # Both read the same model: their prompts are continued alike.
    assert found[-1]["same"] == 1


def test_the_crowd_is_watched_while_all_of_it_decodes() -> None:
    """On a GPU its kernels are watched; here torch's operations, of which every step has some."""
    ours = Ours(SHIPPED, sequences=SMALL.crowd, longest=64, kv_tokens=SMALL.crowd * 64)
    [row] = computing(ours, read_spec(SHIPPED), SMALL, DeviceType.CPU)
    assert 0 < row["ours"] <= 100
    assert not ours.engine.has_work
