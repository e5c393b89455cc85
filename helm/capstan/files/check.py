"""What `helm test` runs: is the CRD served, may the operator read it, is an operator ready, does one of them act?

Runs in a pod under the operator's own ServiceAccount, so that a missing right shows here. Standard library only.
Arguments: the operator's readiness URL, the path of its Lease, the paths of the collections that it watches.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_S = 60.0


def fetch(url: str, context: ssl.SSLContext | None = None, token: str = "") -> bytes:
    """The body of `url`; raises OSError with the server's own words."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} answered {error.code}: {error.read(500).decode('utf-8', 'replace')}") from error


def missing(ready: str, lease: str, collections: list[str], server: str, context: ssl.SSLContext | None) -> str:
    """The first thing that is not as it must be, in one sentence; empty when all is well."""
    token = (ACCOUNT / "token").read_text("ascii")
    try:
        for path in collections:
            fetch(f"{server}{path}?limit=1", context, token)
        fetch(ready)
        held = json.loads(fetch(server + lease, context, token))["spec"]
    except OSError as error:
        return str(error)
    if not held.get("holderIdentity"):
        return f"nobody holds {lease}"
    age = datetime.now(UTC) - datetime.fromisoformat(held["renewTime"])
    if age > timedelta(seconds=held["leaseDurationSeconds"]):
        return f"{held['holderIdentity']} last renewed {lease} {age.total_seconds():.0f} s ago"
    print(f"ok: {held['holderIdentity']} acts, {len(collections)} collection(s) can be read, {ready} answers")
    return ""


def main() -> str | None:
    ready, lease, *collections = sys.argv[1:]
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    context = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    until = time.monotonic() + PATIENCE_S
    while (problem := missing(ready, lease, collections, server, context)) and time.monotonic() < until:
        print(f"waiting: {problem}")
        time.sleep(2)
    return problem or None


if __name__ == "__main__":
    sys.exit(main())
