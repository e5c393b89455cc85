"""The webhook's door: real TLS, a certificate that comes late or is renewed, and bodies that are no reviews."""

import asyncio
import datetime
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from reviewing import TOO_LONG, asking, manifest, store
from worlds import deployment

from capstan_operator import webhook
from capstan_operator.admission import review
from capstan_operator.webhook import Certificate, Webhook
from capstan_operator.world.kubernetes.store import Store
from fake_kubernetes import FakeKubernetes
from running_operator import running

HOST = "capstan-webhook.prod.svc"


def issue(folder: Path, name: str = "tls") -> str:
    """A self-signed certificate for the Service's name, as the chart makes one; returns its PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(exist_ok=True)
    for suffix, content in ((".crt", pem), (".key", secret)):
        # As a kubelet does it: what is read is the old file or the new one.
        (folder / f"{name}{suffix}.new").write_bytes(content)
        (folder / f"{name}{suffix}.new").rename(folder / f"{name}{suffix}")
    return pem.decode()


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Webhook]:
    made = Webhook(lambda document: review(document, Store(lambda _: None)), certificate(folder))
    running = asyncio.create_task(made.run("127.0.0.1", 0))
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait([running])


def certificate(folder: Path) -> Certificate:
    return Certificate(folder / "tls.crt", folder / "tls.key")


async def listening(door: Webhook) -> int:
    async with asyncio.timeout(10):
        while door.port is None:  # noqa: ASYNC110 - the product has no use for an event
            await asyncio.sleep(0.01)
    return door.port


async def post(door: Webhook | int, trusted: str, body: Any, path: str = webhook.PATH) -> tuple[int, str]:
    """As the API server does: it trusts the bundle of the configuration and expects the Service's name."""
    content = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    trust = ssl.create_default_context(cadata=trusted)
    url = f"https://127.0.0.1:{door if isinstance(door, int) else await listening(door)}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=content, ssl=trust, server_hostname=HOST) as answer,
    ):
        return answer.status, await answer.text()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_LOOK_S", 0.02)


async def test_a_review_is_answered_over_tls(tmp_path: Path) -> None:
    trusted = issue(tmp_path)
    async with served(tmp_path) as door:
        status, text = await post(door, trusted, asking(manifest(deployment())))
        assert (status, json.loads(text)["response"]) == (200, {"uid": "705ab4f5", "allowed": True})
        status, text = await post(door, trusted, asking({**manifest(deployment()), "spec": {}}))
        assert (status, json.loads(text)["response"]["allowed"]) == (200, False)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "is not JSON"),
        (b"\xff\xfe", 400, "is not JSON"),
        (b"[" * 100_000, 400, "is not JSON"),
        ({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "1"}}, 400, "/v1"),
        (b" " * (5 << 20), 413, ""),
    ],
    ids=["cut", "binary", "deep", "version", "large"],
)
async def test_what_is_no_review_is_refused_with_a_reason(tmp_path: Path, body: Any, status: int, said: str) -> None:
    trusted = issue(tmp_path)
    async with served(tmp_path) as door:
        got, text = await post(door, trusted, body)
        assert got == status
        assert said in text
        assert (await post(door, trusted, asking(manifest(deployment()))))[0] == 200


async def test_who_never_ends_its_review_does_not_keep_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_PATIENCE_S", 0.2)
    trusted = issue(tmp_path)
    async with served(tmp_path) as door:
        port = await listening(door)
        trust = ssl.create_default_context(cadata=trusted)
        head = f"POST {webhook.PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\n".encode()
        lines = [
            await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=HOST)
            for _ in range(webhook._MOST_AT_ONCE)
        ]
        for _, writer in lines:
            writer.write(head)
        for reader, writer in lines:
            async with asyncio.timeout(10):
                assert (await reader.readline()).split()[1] == b"503"
            writer.close()
        assert (await post(door, trusted, asking(manifest(deployment()))))[0] == 200


async def test_what_finds_no_room_in_time_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(webhook, "_MOST_AT_ONCE", 0)
    trusted = issue(tmp_path)
    async with served(tmp_path) as door:
        status, text = await post(door, trusted, asking(manifest(deployment())))
        assert (status, text) == (503, "not judged within 0.2 s")


async def test_other_paths_and_verbs_are_not_there(tmp_path: Path) -> None:
    trusted = issue(tmp_path)
    async with served(tmp_path) as door:
        assert (await post(door, trusted, {}, path="/"))[0] == 404
        assert (await post(door, trusted, {}, path="/metrics"))[0] == 404


async def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path, quick: None) -> None:
    first = issue(tmp_path)
    async with served(tmp_path) as door:
        assert (await post(door, first, asking(manifest(deployment()))))[0] == 200
        second = issue(tmp_path)
        async with asyncio.timeout(10):
            while True:
                try:
                    status, _ = await post(door, second, asking(manifest(deployment())))
                    break
                except aiohttp.ClientConnectorCertificateError:
                    await asyncio.sleep(0.02)
        assert status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(door, first, asking(manifest(deployment())))


async def test_a_certificate_that_comes_late_opens_the_door_then(tmp_path: Path, quick: None) -> None:
    async with served(tmp_path) as door:
        await asyncio.sleep(0.05)
        assert door.port is None
        trusted = issue(tmp_path)
        assert (await post(door, trusted, asking(manifest(deployment()))))[0] == 200


async def test_half_a_pair_leaves_the_old_one_in_service(tmp_path: Path) -> None:
    trusted = issue(tmp_path)
    pair = certificate(tmp_path)
    pair.look()
    assert pair.is_loaded
    renewed = issue(tmp_path / "other")
    (tmp_path / "other/tls.crt").rename(tmp_path / "tls.crt")
    pair.look()
    door = Webhook(lambda document: review(document, Store(lambda _: None)), pair)
    running = asyncio.create_task(door.run("127.0.0.1", 0))
    try:
        assert (await post(door, trusted, asking(manifest(deployment()))))[0] == 200
        (tmp_path / "other/tls.key").rename(tmp_path / "tls.key")
        pair.look()
        assert (await post(door, renewed, asking(manifest(deployment()))))[0] == 200
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_an_operator_that_is_given_a_certificate_judges_by_what_it_watches(tmp_path: Path) -> None:
    trusted, of = issue(tmp_path), deployment()
    port = free_port()
    files = {"certificateFile": str(tmp_path / "tls.crt"), "keyFile": str(tmp_path / "tls.key")}
    async with FakeKubernetes() as server:
        live = store(of)
        [known] = [live.deployment(key) for key in live.deployments()]
        server.put("inferencedeployments", dict(known or {}))
        async with running(server, admission={**files, "host": "127.0.0.1", "port": port}) as url:
            _, text = await post(port, trusted, asking(manifest(deployment(model=TOO_LONG))))
            async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as page:
                assert 'admission_reviews_total{verdict="refused"} 1.0' in await page.text()
    assert "maxModelLength 8192 fits" in json.loads(text)["response"]["status"]["message"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_port_that_is_taken_is_told_and_tried_again(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = issue(tmp_path)
    other = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    door = Webhook(lambda document: review(document, Store(lambda _: None)), certificate(tmp_path))
    running = asyncio.create_task(door.run("127.0.0.1", port))
    try:
        async with asyncio.timeout(10):
            while f"admission.port: 127.0.0.1:{port} cannot be used" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        other.close()
        await other.wait_closed()
        assert (await post(door, trusted, asking(manifest(deployment()))))[0] == 200
    finally:
        running.cancel()
        await asyncio.wait([running])
