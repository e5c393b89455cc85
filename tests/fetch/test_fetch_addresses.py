"""Nobody is talked to but the endpoint and the hosts it may redirect to, whatever names and servers say."""

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from yarl import URL

from capstan_api.fetch_args import SourceEndpoint
from capstan_fetch.addresses import guarded_socket, why_not
from capstan_fetch.errors import SourceError
from capstan_fetch.transport import Transport
from fetch.fake_hub import FakeHub
from fetch.fetching import args, fetched, hub_args

METADATA = ["169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"]
PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "10.96.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "100.64.0.1", "198.18.0.1", "192.0.2.1", "::1", "fc00::1", "fd12:3456::1", "2001:db8::1",
]  # fmt: skip
NOBODY = ["0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "ff02::1"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "52.216.0.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", METADATA + NOBODY)
def test_metadata_and_nobody_are_refused_even_with_permission_for_private_ones(address: str) -> None:
    assert why_not(address, allow_private=True) is not None
    assert why_not(address, allow_private=False) is not None


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_need_permission(address: str) -> None:
    assert why_not(address, allow_private=False) is not None
    assert why_not(address, allow_private=True) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_fine(address: str) -> None:
    assert why_not(address, allow_private=False) is None


FORMS = ["::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "64:ff9b:1::{}", "::{}"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.0.1"])
def test_an_ipv4_address_inside_of_an_ipv6_address_is_found(form: str, address: str) -> None:
    assert why_not(form.format(address), allow_private=False) is not None


def test_addresses_of_tunnels_are_judged_by_where_they_lead() -> None:
    assert why_not("2002:7f00:1::", allow_private=False) is not None
    assert why_not("2002:a9fe:a9fe::1", allow_private=True) is not None
    assert why_not("fe80::1%eth0", allow_private=True) is not None


@given(st.ip_addresses(v=4, network="127.0.0.0/8") | st.ip_addresses(v=4, network="10.0.0.0/8"))
def test_no_spelling_of_a_private_address_gets_a_socket(address: object) -> None:
    for text in (str(address), f"::ffff:{address}", f"64:ff9b::{address}"):
        with pytest.raises(PermissionError):
            guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (text, 80)), allow_private=False)


# Every one of these is this machine or its neighbour, to some resolver at least.
SPELLINGS = [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1",
    "017700000001", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "127.0.0.1.", "0", "0.0.0.0",
    "169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.0.0.1", "192.168.0.1", "172.16.0.1", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_this_machine_is_connected_to(hub: FakeHub, tmp_path: Path, host: str) -> None:
    port = hub.url.rpartition(":")[2]
    endpoint = SourceEndpoint(url=f"http://{host}:{port}")
    with pytest.raises(SourceError):
        await fetched(hub_args(hub, tmp_path / "model", endpoint=endpoint, patience_s=0))
    assert hub.seen == []


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["::1"], ["10.0.0.1", "fd00::1"]]
)
async def test_a_name_that_leads_inside_is_refused_after_it_was_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    def resolve(host: object, port: int, *_: object, **__: object) -> list[object]:
        families = [socket.AF_INET6 if ":" in answer else socket.AF_INET for answer in answers]
        return [
            (family, socket.SOCK_STREAM, 6, "", (answer, port) if family == socket.AF_INET else (answer, port, 0, 0))
            for family, answer in zip(families, answers, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(SourceError, match=r"huggingface\.co must not be connected to: .* allowPrivate"):
        await fetched(args(uri="hf://a/b", destination=tmp_path / "model"))


REDIRECTS = [
    "http://169.254.169.254/latest/meta-data/iam/", "http://127.0.0.1:1/", "http://[::1]/", "https://evil.example/x",
    "//evil.example/x", "file:///etc/passwd", "ftp://localhost/x", "gopher://127.0.0.1/", "http://", "http://localhost:99999/",
    "http://localhost@evil.example/", "http://user:password@localhost/x", "javascript:alert(1)", "http://hf.co.evil.example/",
    "http://evil.example#@localhost", "http://evil.example\\@localhost/", "http://0x7f000001/", "http://localhost.evil.example/",
]  # fmt: skip


@pytest.mark.parametrize("target", REDIRECTS)
async def test_a_redirect_to_anybody_else_is_refused(hub: FakeHub, tmp_path: Path, target: str) -> None:
    hub.redirect_to = target
    with pytest.raises(SourceError, match=r"settings do not allow|no plain http|redirects more than"):
        await fetched(hub_args(hub, tmp_path / "model"))
    assert hub.cdn_seen == []


async def test_another_port_of_an_allowed_host_is_another_server(hub: FakeHub, tmp_path: Path) -> None:
    endpoint = SourceEndpoint(url=hub.url, redirect_hosts=("localhost", "*.localhost"), allow_private=True)
    with pytest.raises(SourceError, match=r"sends us to http://localhost:\d+, which the operator's settings do not"):
        await fetched(hub_args(hub, tmp_path / "model", endpoint=endpoint))
    assert hub.cdn_seen == []


@pytest.mark.parametrize("target", ["http://hub.example/x", "http://cdn.example/x", "https://cdn.example:8443/x"])
async def test_an_encrypted_endpoint_cannot_send_us_to_a_plain_one(target: str) -> None:
    endpoint = SourceEndpoint(url="https://hub.example", redirect_hosts=("cdn.example", "hub.example"))
    async with Transport(endpoint, authorize=lambda _, headers: headers, stall_timeout_s=1) as transport:
        with pytest.raises(SourceError, match="settings do not allow"):
            async with transport.get(URL(target)):
                pass


async def test_a_circle_of_redirects_ends(hub: FakeHub, tmp_path: Path) -> None:
    hub.redirect_to = "/capstan/tiny/resolve/0123456789abcdef0123456789abcdef01234567/model.safetensors"
    with pytest.raises(SourceError, match="redirects more than 5 times"):
        await fetched(hub_args(hub, tmp_path / "model"))


async def test_a_proxy_of_the_environment_is_not_asked(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    await fetched(hub_args(hub, tmp_path / "model"))


@pytest.mark.parametrize(
    "url",
    ["http://user:key@hub.example", "http://", "file:///etc", "http://hub.example/?a=b", "hub.example", "http://h#f"],
)
def test_an_endpoint_is_a_plain_address(url: str) -> None:
    with pytest.raises(ValidationError):
        SourceEndpoint(url=url)
