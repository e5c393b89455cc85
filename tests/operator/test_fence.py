"""Engines and gateways are told nothing by an operator that may no longer act; looking is always allowed."""

import pytest

from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.errors import NotLeader
from capstan_operator.settings import OperatorSettings
from fake_kubernetes import FakeKubernetes


async def refuse() -> None:
    raise NotLeader("the lease is another's")


async def test_nothing_but_a_get_passes_a_fence_that_is_closed() -> None:
    http = BoundedHttp(OperatorSettings(), fence=refuse)
    async with FakeKubernetes() as server:
        assert (await http.request("GET", f"{server.url}/api/v1/namespaces/default/pods")).status == 200
        for method in ("PUT", "PATCH", "POST"):
            with pytest.raises(NotLeader):
                await http.request(method, f"{server.url}/api/v1/namespaces/default/pods", json={})
        assert [request.verb for request in server.requests] == ["list"]
    await http.close()
