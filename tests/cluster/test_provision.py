"""What needs no cluster: which provider is chosen and why, what a machine lacks, and how a run is ended."""

import ipaddress
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from cluster import images, network, preflight, providers
from cluster.gobuild import UPSTREAMS, BuildFailed, build, exclusive, missing
from cluster.layout import Layout
from cluster.pki import Authority
from cluster.run import MARKER, Run, StartFailed, processes_of, records


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPSTAN_CACHE", str(tmp_path / "cache"))
    for variable in (providers.KUBECONFIG_VARIABLE, providers.PROVIDER_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def silent(_: str) -> None:
    pass


def test_every_provider_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    with pytest.raises(providers.Unavailable) as none:
        providers.cluster(said.append)
    for reason in (
        "CAPSTAN_TEST_KUBECONFIG is not set",
        "no `docker` on the PATH",
        "no `runc` on the PATH: install runc",
    ):
        assert reason in str(none.value)
    assert len(said) == 3


def test_a_cluster_that_was_named_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(providers.KUBECONFIG_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(providers.Unavailable, match="which is no file"):
        providers.cluster(silent)


def test_an_unknown_provider_is_refused_with_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(providers.PROVIDER_VARIABLE, "minikube")
    with pytest.raises(providers.Unavailable, match="'minikube': it must be one of kubeconfig, kind, embedded"):
        providers.cluster(silent)


def test_preflight_names_the_package_of_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = preflight.for_real_node()
    assert "no `busybox` on the PATH: install busybox-static" in lacking
    assert any("no `go` on the PATH" in reason and "kubernetes" in reason for reason in lacking)
    # What builds images is no need of a node: clusters can be had without.
    assert not any("buildah" in reason for reason in lacking)
    assert [reason.rpartition(" ")[2] for reason in preflight.for_images()] == ["buildah", "skopeo"]


def test_an_image_that_another_build_has_replaced_is_not_handed_out_under_its_name(tmp_path: Path) -> None:
    layout, lock = Layout(tmp_path / "layout"), tmp_path / "lock"

    def build_it(content: bytes) -> tuple[str, ...]:
        (tmp_path / "layer").write_bytes(content)
        layout.store("engine", tmp_path / "layer", {"os": "linux"})
        return layout.blobs("engine")

    mine = build_it(b"mine")
    with images.kept(layout, "engine", mine, lock):
        assert all(layout.path(digest).exists() for digest in mine)
    build_it(b"theirs")
    with pytest.raises(BuildFailed, match="was replaced by another build"), images.kept(layout, "engine", mine, lock):
        pytest.fail("it is handed out")


def test_programs_are_built_only_when_their_pins_have_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    etcd = UPSTREAMS["etcd"]
    folder = tmp_path / "cache" / "bin" / f"etcd-{etcd.version}-{etcd.digest}"
    assert missing(["etcd"]) == ["etcd"]
    folder.mkdir(parents=True)
    assert missing(["etcd"]) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(["etcd"], silent) == {"etcd": folder / "etcd"}
    with pytest.raises(BuildFailed, match="there is no `go` on the PATH"):
        build(["kwok"], silent)


def test_the_pins_name_every_program_that_is_started() -> None:
    assert UPSTREAMS["kubernetes"].programs == (
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubelet",
    )
    assert UPSTREAMS["etcd"].programs == ("etcd",)
    assert UPSTREAMS["containerd"].programs == ("containerd", "containerd-shim-runc-v2", "ctr")


def test_a_run_ends_its_processes_and_their_children_and_nobody_elses() -> None:
    run, other = Run.create("test", owned=True), Run.create("test", owned=True)
    try:
        run.start("parent", "sh", "-c", "sleep 600 & sleep 600 & wait")
        spared = other.start("spared", "sleep", "600")
        run.end()
        assert processes_of(run.folder) == []
        assert not run.folder.exists()
        assert [record.id for record in records()] == [other.id]
        assert spared.process is not None
        assert spared.process.poll() is None
    finally:
        run.end()
        other.end()
    assert records() == []


def test_a_run_is_orphaned_once_its_owner_is_dead() -> None:
    script = "from cluster.run import Run; Run.create('test', owned=True)"
    subprocess.run(
        (sys.executable, "-c", script), check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    )
    (record,) = records()
    assert record.orphaned
    Run(record).end()
    assert records() == []


def test_a_daemon_that_dies_at_once_is_reported_with_its_last_words() -> None:
    run = Run.create("test", owned=True)
    try:
        daemon = run.start("fragile", "sh", "-c", "echo no such flag; exit 2")
        with pytest.raises(StartFailed, match=r"fragile ended with status 2; .*\nno such flag"):
            daemon.wait_until(lambda: False, timeout_s=30)
    finally:
        run.end()


def test_every_process_of_a_run_carries_its_marker() -> None:
    run = Run.create("test", owned=True)
    try:
        talker = run.start("talker", "sh", "-c", f"echo ${MARKER}")
        assert talker.process is not None
        talker.process.wait()
        assert run.daemons["talker"].last_words() == str(run.folder)
    finally:
        run.end()


def test_certificates_name_the_component_and_are_signed_by_the_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("kubelet", "system:node:node1", "system:nodes", ["10.64.0.1", "node1"])
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pair.certificate.read_bytes()))
    assert certificate.subject.rfc4514_string() == "O=system:nodes,CN=system:node:node1"
    assert pair.key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("slot", [0, 1, network.NUM_SLOTS - 1])
def test_the_parts_of_a_slot_lie_within_it_and_apart(slot: int) -> None:
    addresses = network.Addresses(slot)
    link = ipaddress.IPv4Network(f"{addresses.host_ip}/30", strict=False)
    parts = [ipaddress.IPv4Network(addresses.pods), ipaddress.IPv4Network(addresses.services), link]
    assert all(part.subnet_of(addresses.everything) for part in parts)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(parts, 2))
    assert ipaddress.ip_address(addresses.gateway_ip) in link
    assert not addresses.everything.overlaps(network.Addresses(slot + 1).everything)


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    attempt = f"import fcntl; fcntl.flock(open({str(lock)!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with exclusive(lock):
        held = subprocess.run((sys.executable, "-c", attempt), capture_output=True, text=True, check=False)
        assert "BlockingIOError" in held.stderr
    subprocess.run((sys.executable, "-c", attempt), check=True)
