"""An engine computes on the GPU that it sees, if that GPU can run the kernels."""

import pytest
import torch

from capstan_engine.errors import ConfigurationError
from capstan_engine.runner import device


@pytest.fixture
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 << 30, 8 << 30))


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize(
    ("capability", "expected"), [(None, "cpu"), ((8, 0), "cuda"), ((9, 0), "cuda")], indirect=["capability"]
)
def test_a_gpu_is_used_where_there_is_one(expected: str) -> None:
    assert device.kind() == expected
    memory = device.available_memory(expected)
    assert memory == 7 << 30 if expected == "cuda" else memory > 0


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("capability", [(7, 5)], indirect=True)
def test_a_gpu_that_is_too_old_is_named_with_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"Some GPU has compute capability 7\.5.*CUDA_VISIBLE_DEVICES"):
        device.kind()
