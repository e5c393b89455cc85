"""AWS Signature Version 4 of a GET without a body. Pure: the time is an argument.

Follows "Signature Calculations for the Authorization Header" of the Amazon S3 API reference; the tests compare it with
botocore's. It is here because the libraries that have it bring a connection of their own, past every check of ours.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from yarl import URL

_EMPTY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class AwsKeys:
    """Credentials, long-lived or temporary. Not shown when printed."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def signed(url: URL, headers: Mapping[str, str], keys: AwsKeys, region: str, now: float) -> dict[str, str]:
    """`headers` and those that prove who asks. `now` in epoch seconds; a server takes it within 15 minutes."""
    moment = datetime.fromtimestamp(now, UTC)
    stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
    added = {"x-amz-date": stamp, "x-amz-content-sha256": _EMPTY}
    if keys.session_token is not None:
        added["x-amz-security-token"] = keys.session_token
    # The host and what S3 demands. The rest, such as Range, stays free: those on the way may touch it.
    covered = {"host": url.authority, **added}
    names = ";".join(sorted(covered))
    request = "\n".join(
        (
            "GET",
            quote(url.path, safe="/-_.~") or "/",
            "&".join(map("=".join, sorted((_encoded(key), _encoded(value)) for key, value in url.query.items()))),
            *(f"{name}:{covered[name].strip()}" for name in sorted(covered)),
            "",
            names,
            _EMPTY,
        )
    )
    scope = f"{day}/{region}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    proof = hmac.digest(key, to_sign.encode(), "sha256").hex()
    credential = f"{keys.access_key_id}/{scope}"
    authorization = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={proof}"
    return {**headers, **added, "Authorization": authorization}


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
