"""The script of `helm test` against a small API server: it passes when all is well and names what is not."""

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from charts import CHART, VALUE_SETS, of_kind, only, release

LEASE = "/apis/coordination.k8s.io/v1/namespaces/prod/leases/demo-capstan"
EVERYWHERE = "/apis/capstan.dev/v1alpha1/inferencedeployments"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_check", CHART / "files/check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "token").write_text("secret-token")
    monkeypatch.setattr(module, "ACCOUNT", tmp_path)
    return module


class Cluster:
    """Answers of the API server and of the operator, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.tokens: dict[str, str | None] = {}
        self.url = ""

    def lease(self, holder: str, age_s: float) -> None:
        renewed = datetime.now(UTC) - timedelta(seconds=age_s)
        text = renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": holder, "renewTime": text, "leaseDurationSeconds": 15}
        self.answers[LEASE] = (200, {"spec": spec})


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            made.tokens[path] = self.headers.get("authorization")
            code, body = made.answers.get(path, (404, {"message": f"the server could not find {path}"}))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    made.answers = {EVERYWHERE: (200, {"items": []}), "/readyz": (200, "ok")}
    made.lease("demo-capstan-x", age_s=1)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def missing(check: ModuleType, cluster: Cluster) -> str:
    return str(check.missing(f"{cluster.url}/readyz", LEASE, [EVERYWHERE], cluster.url, None))


def test_nothing_is_missing_when_all_is_well(
    check: ModuleType, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert missing(check, cluster) == ""
    assert "demo-capstan-x acts" in capsys.readouterr().out


def test_the_token_goes_to_the_api_server_and_never_to_the_operator(check: ModuleType, cluster: Cluster) -> None:
    missing(check, cluster)
    assert cluster.tokens == {EVERYWHERE: "Bearer secret-token", LEASE: "Bearer secret-token", "/readyz": None}


def test_a_definition_that_is_not_served_is_named(check: ModuleType, cluster: Cluster) -> None:
    del cluster.answers[EVERYWHERE]
    assert EVERYWHERE in missing(check, cluster)
    assert "404" in missing(check, cluster)


def test_a_right_that_is_lacking_is_told_in_the_servers_words(check: ModuleType, cluster: Cluster) -> None:
    cluster.answers[EVERYWHERE] = (403, {"message": "inferencedeployments is forbidden"})
    assert "inferencedeployments is forbidden" in missing(check, cluster)


def test_an_operator_that_is_not_ready_is_named_with_its_reason(check: ModuleType, cluster: Cluster) -> None:
    cluster.answers["/readyz"] = (503, "pods have not been listed")
    assert "pods have not been listed" in missing(check, cluster)


@pytest.mark.parametrize(("holder", "age_s", "named"), [("", 1, "nobody"), ("demo-capstan-x", 60, "60 s ago")])
def test_a_lease_that_nobody_keeps_is_noticed(
    check: ModuleType, cluster: Cluster, holder: str, age_s: float, named: str
) -> None:
    cluster.lease(holder, age_s)
    assert named in missing(check, cluster)


def test_a_lease_in_its_first_moment_is_waited_for(check: ModuleType, cluster: Cluster) -> None:
    cluster.answers[LEASE] = (200, {"spec": {}})
    assert "nobody" in missing(check, cluster)


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_pod_runs_this_script_with_the_releases_own_paths(values: str) -> None:
    found = release(values)
    [container] = only(found, "Pod")["spec"]["containers"]
    script, ready, lease, *collections = container["args"]
    assert script.rstrip() == (CHART / "files/check.py").read_text("utf-8").rstrip()
    fullname = only(found, "Deployment")["metadata"]["name"]
    [service] = [each for each in of_kind(found, "Service") if each["metadata"]["name"].endswith("-metrics")]
    assert ready == f"http://{service['metadata']['name']}.prod.svc:{service['spec']['ports'][0]['port']}/readyz"
    assert lease == f"/apis/coordination.k8s.io/v1/namespaces/prod/leases/{fullname}"
    watched = VALUE_SETS[values].get("watchNamespaces")
    below = "/apis/capstan.dev/v1alpha1/namespaces/{}/inferencedeployments"
    assert collections == ([below.format(namespace) for namespace in watched] if watched else [EVERYWHERE])
