"""Names that a source lists: what is taken, what is left, and more than five hundred that must lead nowhere."""

from itertools import product
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_fetch.errors import SourceError, UnsafeName
from capstan_fetch.listing import RemoteFile, checkpoint_files, is_wanted, shown
from fetch.fake_bucket import FakeBucket
from fetch.fake_hub import FakeHub
from fetch.fetching import AWS, WANTED, bucket_args, contents, fetched, hub_args

_UPS = [
    "../",
    "..\\",
    "./../",
    "..//",
    "%2e%2e/",
    "..%2f",
    "..%5c",
    "%252e%252e%252f",
    "..;/",
    "\u2025/",
    "\uff0e\uff0e/",
]
_UPS += ["..\u2215", "..\u2044", "..\uff0f", "\x00../", "..\x00/", ".\u200b./", "..\t/", " ../", "..\u202e/", "..\r\n/"]
_PREFIXES = [
    "",
    "/",
    "//",
    "a/",
    "model/",
    "additional_chat_templates/",
    "C:\\",
    "C:/",
    "~/",
    "\\\\host\\share\\",
    "file:///",
]
_TAILS = ["etc/passwd", "config.json", "model.safetensors", "x.jinja"]
TRAVERSALS = [
    *(prefix + up * depth + tail for prefix, up, depth, tail in product(_PREFIXES, _UPS, (1, 3), _TAILS)),
    *(prefix + tail for prefix, tail in product(_PREFIXES[1:3] + _PREFIXES[6:], _TAILS)),
    "", ".", "..", "/", "\\", "\x00", "config.json/", "config.json/..", "config.json\x00.txt", "config.json\n",
    "con fig.json", "-rf.json", "$(reboot).json", "`x`.json", "a;b.json", "co\u0301nfig.json", "\u0441onfig.json",
    "config.json\u202e", "x" * 300 + ".json", "additional_chat_templates/../x.jinja",
    "additional_chat_templates/-x.jinja", "additional_chat_templates/a b.jinja",
]  # fmt: skip
# The product also has the plain names that are meant to be taken.
TRAVERSALS = sorted(set(TRAVERSALS) - {*_TAILS, "additional_chat_templates/x.jinja"})


def listed(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1, "v") for path in ("config.json", "model.safetensors", *paths)]


def taken(path: str) -> bool:
    """Whether a listing with this name leads to a file of this name."""
    try:
        return path in {file.path for file in checkpoint_files(listed(path), "hf://a/b")}
    except UnsafeName:
        return False


def test_no_name_of_the_corpus_is_ever_written() -> None:
    assert len(TRAVERSALS) > 500
    assert [path for path in TRAVERSALS if taken(path)] == []


@given(
    st.text(st.sampled_from("./\\%2eaA~:\x00 \u2025\u202e\ud800-"), max_size=12),
    st.sampled_from(["", ".json", ".jinja"]),
)
def test_whatever_is_taken_stays_inside(middle: str, suffix: str) -> None:
    path = middle + suffix
    if taken(path):
        assert Path("/cache/model", path).resolve().is_relative_to("/cache/model")
        assert path.isascii()
        assert not path.startswith(("-", ".", "/"))


@given(st.text())
def test_any_name_is_shown_in_a_form_that_is_harmless_in_a_log(path: str) -> None:
    assert shown(path).isprintable()
    assert len(shown(path)) < 1000


@pytest.mark.parametrize("path", TRAVERSALS[::40])
async def test_a_hub_that_lists_such_a_name_writes_nothing_outside(hub: FakeHub, tmp_path: Path, path: str) -> None:
    hub.siblings = [hub._sibling(name) for name in WANTED] + [hub._sibling("config.json") | {"rfilename": path}]
    try:
        await fetched(hub_args(hub, tmp_path / "deep/down/model"))
    except SourceError:
        assert not (tmp_path / "deep/down/model").exists()
    else:
        assert contents(tmp_path) == {f"deep/down/model/{name}": c for name, c in WANTED.items()} | {
            "deep/down/.model.lock": b""
        }


@pytest.mark.parametrize("key", ["llm/tiny/../../../etc/config.json", "elsewhere/config.json", "/etc/config.json"])
async def test_a_bucket_that_lists_such_a_key_is_refused(bucket: FakeBucket, tmp_path: Path, key: str) -> None:
    bucket.listing = (
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>"
        f"<Key>{escape(key)}</Key><Size>1</Size><ETag>e</ETag></Contents></ListBucketResult>"
    )
    with pytest.raises(SourceError):
        await fetched(bucket_args(bucket, tmp_path / "model"), AWS)
    assert len(bucket.seen) == 1


@pytest.mark.parametrize(
    "path", ["../x.md", "/etc/passwd", "a\\b.png", "a//b.png", "C:x.png", "a/../b.png", "x\x00.md"]
)
def test_a_name_that_leads_elsewhere_condemns_the_listing_even_when_it_is_not_wanted(path: str) -> None:
    with pytest.raises(UnsafeName, match="nothing is fetched"):
        checkpoint_files(listed(path), "hf://a/b")


def test_a_foreign_name_that_is_not_wanted_does_no_harm() -> None:
    assert len(checkpoint_files(listed("images/Bild ä.png", ".gitattributes"), "hf://a/b")) == 2


def test_code_and_pickles_are_never_wanted() -> None:
    for name in (
        "a.py",
        "a.bin",
        "a.pt",
        "a.pth",
        "a.pkl",
        "a.ckpt",
        "a.gguf",
        "a.so",
        "a.h5",
        "a.msgpack",
        "a.json.py",
    ):
        assert not is_wanted(name)
        assert not is_wanted(name.upper())


def test_two_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(UnsafeName, match="differ in case"):
        checkpoint_files(listed("Config.json"), "hf://a/b")


def test_weights_that_lie_there_twice_are_taken_once() -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    files = checkpoint_files(listed(*shards, "consolidated.safetensors"), "hf://a/b")
    assert {file.path for file in files} == {"config.json", "model.safetensors", *shards}


def test_weights_of_any_other_name_are_taken() -> None:
    files = [RemoteFile("config.json", 1, "v"), RemoteFile("adapter.safetensors", 1, "v")]
    assert len(checkpoint_files(files, "hf://a/b")) == 2


def test_a_listing_without_end_is_refused() -> None:
    with pytest.raises(SourceError, match="more than the 4096 allowed"):
        checkpoint_files(listed(*(f"{number}.json" for number in range(5000))), "hf://a/b")
