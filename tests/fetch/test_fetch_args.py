"""Whatever the resource may say about a fetched source, the fetcher can be told."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from capstan_api.fetch_args import FetchArgs
from capstan_api.model import ModelSource

_PATTERN = ModelSource.model_json_schema()["properties"]["uri"]["pattern"]
_FETCHED = st.from_regex(re.compile(_PATTERN, re.ASCII), fullmatch=True).filter(
    lambda uri: uri.startswith(("hf://", "s3://")) and "/.." not in uri and len(uri) <= 1024
)


@given(_FETCHED, st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,40}", fullmatch=True))
def test_every_source_of_a_resource_can_be_handed_on(uri: str, revision: str | None) -> None:
    if not uri.startswith("hf://"):
        revision = None
    source = ModelSource(uri=uri, revision=revision)
    args = FetchArgs(uri=source.uri, revision=source.revision, digest=source.digest, destination=Path("/model/a"))
    assert FetchArgs.model_validate_json(args.model_dump_json()) == args


@pytest.mark.parametrize("destination", ["model", "/", "/model", "/model/../etc/x", "relative/model"])
def test_a_destination_is_a_directory_inside_of_a_cache(destination: str) -> None:
    with pytest.raises(ValidationError, match="destination must be"):
        FetchArgs(uri="hf://a/b", destination=Path(destination))
