"""`s3://` against an S3 server on this machine that verifies every signature with botocore."""

import asyncio
from pathlib import Path

import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from capstan_fetch.errors import SourceError
from capstan_fetch.signature import AwsKeys, signed
from fetch.fake_bucket import KEY, KEY_ID, REGION, FakeBucket
from fetch.fetching import AWS, UNWANTED, WANTED, bucket_args, contents, fetched


async def test_the_checkpoint_arrives_whole_and_nothing_else_does(bucket: FakeBucket, tmp_path: Path) -> None:
    manifest = await fetched(bucket_args(bucket, tmp_path / "model"), AWS)
    assert contents(tmp_path / "model") == WANTED
    assert manifest.commit is None


async def test_s3fs_reads_the_same_from_our_bucket(bucket: FakeBucket) -> None:
    # The marker of a folder, which s3fs lists as a file of the folder's own name.
    del bucket.objects["llm/tiny/"]

    def read() -> dict[str, bytes]:
        files = s3fs.S3FileSystem(
            endpoint_url=bucket.url,
            key=KEY_ID,
            secret=KEY,
            client_kwargs={"region_name": REGION},
            skip_instance_cache=True,
        )
        return {path.removeprefix("models/llm/tiny/"): files.cat_file(path) for path in files.find("models/llm/tiny/")}

    found = await asyncio.to_thread(read)
    assert found == WANTED | UNWANTED


async def test_a_listing_of_many_pages_is_read_to_its_end(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.page = 2
    await fetched(bucket_args(bucket, tmp_path / "model"), AWS)
    assert contents(tmp_path / "model") == WANTED
    assert sum("continuation-token" in request.query for request in bucket.seen) == 6


async def test_keys_are_read_as_the_server_has_written_them(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.ignores_encoding = True
    bucket.objects["llm/tiny/notes%20and+more.md"] = b"left alone, whatever it is called"
    await fetched(bucket_args(bucket, tmp_path / "model"), AWS)
    assert contents(tmp_path / "model") == WANTED


async def test_a_public_bucket_needs_no_keys(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.public = True
    await fetched(bucket_args(bucket, tmp_path / "model"))
    assert {request.headers.get("authorization") for request in bucket.seen} == {None}


async def test_a_session_token_comes_along(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.token = "very-secret-session"
    await fetched(bucket_args(bucket, tmp_path / "model"), {**AWS, "AWS_SESSION_TOKEN": bucket.token})
    with pytest.raises(SourceError, match="InvalidToken"):
        await fetched(bucket_args(bucket, tmp_path / "other"), AWS)


@pytest.mark.parametrize("uri", ["s3://models/llm/tiny", "s3://models/llm/tiny/"])
async def test_a_prefix_is_a_directory_and_not_the_beginning_of_a_name(
    bucket: FakeBucket, tmp_path: Path, uri: str
) -> None:
    bucket.objects["llm/tiny-other/config.json"] = b"not this"
    await fetched(bucket_args(bucket, tmp_path / "model", uri=uri), AWS)
    assert contents(tmp_path / "model") == WANTED


async def test_a_checkpoint_may_lie_at_the_top_of_the_bucket(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.objects = dict(WANTED)
    await fetched(bucket_args(bucket, tmp_path / "model", uri="s3://models"), AWS)
    assert contents(tmp_path / "model") == WANTED


@pytest.mark.parametrize(
    ("environment", "remedy"),
    [
        ({}, "AccessDenied.*name a Secret with AWS_ACCESS_KEY_ID"),
        ({**AWS, "AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch.*may not list and read"),
        ({"AWS_ACCESS_KEY_ID": KEY_ID}, "belong together"),
        ({**AWS, "AWS_REGION": "evil/../region"}, "AWS_REGION is no region"),
    ],
)
async def test_wrong_keys_name_the_remedy_and_not_the_key(
    bucket: FakeBucket, tmp_path: Path, environment: dict[str, str], remedy: str
) -> None:
    with pytest.raises(SourceError, match=remedy) as caught:
        await fetched(bucket_args(bucket, tmp_path / "model"), environment)
    assert KEY not in str(caught.value)
    assert KEY not in repr(AwsKeys(KEY_ID, KEY, KEY))


async def test_an_object_that_changes_after_it_was_listed_is_not_mixed_with_the_new_one(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = bucket._list

    async def change_after(request):  # type: ignore[no-untyped-def]
        answer = await page(request)
        bucket.objects["llm/tiny/model.safetensors"] = WANTED["model.safetensors"][::-1]
        return answer

    monkeypatch.setattr(bucket, "_list", change_after)
    async with bucket.running():
        with pytest.raises(SourceError, match="changed while it was fetched"):
            await fetched(bucket_args(bucket, tmp_path / "model"), AWS)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "listing",
    [
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
    ],
)
async def test_xml_with_declarations_is_refused(bucket: FakeBucket, tmp_path: Path, listing: str) -> None:
    bucket.listing = listing
    with pytest.raises(SourceError, match="declares entities"):
        await fetched(bucket_args(bucket, tmp_path / "model"), AWS)


_SEGMENT = st.text(st.characters(codec="utf-8", exclude_characters="/?#", exclude_categories=("Cs", "Cc")), min_size=1)


@given(
    path=st.lists(_SEGMENT, min_size=1, max_size=4).filter(lambda parts: not {".", ".."} & set(parts)),
    query=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    token=st.none() | st.text("abc/+=", min_size=1),
)
def test_signatures_are_those_of_botocore(path: list[str], query: dict[str, str], token: str | None) -> None:
    from urllib.parse import quote, urlencode

    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from yarl import URL

    text = urlencode(sorted(query.items()), quote_via=quote, safe="")
    url = (
        "https://s3.example.com:9000/"
        + "/".join(quote(part, safe="-_.~") for part in path)
        + ("?" + text if text else "")
    )
    ours = signed(URL(url, encoded=True), {"Range": "bytes=5-"}, AwsKeys(KEY_ID, KEY, token), REGION, now=1.8e9)
    theirs = AWSRequest("GET", url, headers={"x-amz-content-sha256": ours["x-amz-content-sha256"]})
    theirs.context["timestamp"] = ours["x-amz-date"]
    theirs.context["payload_signing_enabled"] = True
    signer = S3SigV4Auth(Credentials(KEY_ID, KEY, token), "s3", REGION)
    theirs.headers["X-Amz-Date"] = ours["x-amz-date"]
    if token:
        theirs.headers["X-Amz-Security-Token"] = token
    signature = signer.signature(signer.string_to_sign(theirs, signer.canonical_request(theirs)), theirs)
    assert ours["Authorization"].endswith(f"Signature={signature}")
    assert ours["Range"] == "bytes=5-"
