"""From arguments to a finished checkpoint: found in the cache, or listed, downloaded, read back, and given its name.

This is the order of things; how each is done is the other modules' subject.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from capstan_api.fetch_args import HUGGING_FACE_HUB, FetchArgs, SourceEndpoint
from capstan_api.startup import StartupPhase
from capstan_fetch import manifest as manifests
from capstan_fetch.bucket import BucketPrefix
from capstan_fetch.download import Download
from capstan_fetch.errors import Infeasible, Refused, SourceError
from capstan_fetch.hub import HubRepository
from capstan_fetch.listing import Listing, RemoteFile
from capstan_fetch.manifest import FileEntry, Manifest
from capstan_fetch.patience import Patience
from capstan_fetch.progress import Progress, amount
from capstan_fetch.signature import AwsKeys
from capstan_fetch.source import Source
from capstan_fetch.staging import Staging
from capstan_fetch.transport import Transport

logger = logging.getLogger(__name__)

_DEFAULT_REGION: Final = "us-east-1"
# A file that is wrong was damaged on the way, or what is served is not what is listed; a third try would not help.
_TRIES: Final = 2


async def fetch(args: FetchArgs, environment: Mapping[str, str], progress: Progress) -> Manifest:
    """Have the checkpoint at `args.destination`. Raises `FetchError`."""
    staging = Staging(args.destination)
    if (found := await _cached(args, progress)) is not None:
        return found
    progress.begin(StartupPhase.FETCHING, message="another pod fetches the same model into the cache; waiting for it")
    async with staging.locked():
        # Whoever had the lock may have finished.
        if (found := await _cached(args, progress)) is not None:
            return found
        staging.remove_finished()
        progress.begin(StartupPhase.FETCHING, message="asking the source for its files")
        source, endpoint = source_of(args, environment)
        async with Transport(endpoint, authorize=source.authorize, stall_timeout_s=args.stall_timeout_s) as transport:
            try:
                return await _fetched(args, source, transport, staging, progress)
            except Refused as refused:
                raise source.explained(refused) from None


def source_of(args: FetchArgs, environment: Mapping[str, str]) -> tuple[Source, SourceEndpoint]:
    """The source with its credentials, and the server to ask. Raises `SourceError` for unusable credentials."""
    if args.uri.startswith("hf://"):
        token = _secret(environment, "HF_TOKEN")
        return HubRepository(args.uri, args.revision, token), args.endpoint or HUGGING_FACE_HUB
    region = _secret(environment, "AWS_REGION") or _secret(environment, "AWS_DEFAULT_REGION") or _DEFAULT_REGION
    if not region.replace("-", "").isalnum():
        raise SourceError("spec.model.source.secretName: its AWS_REGION is no region's name, as in eu-central-1")
    identity, key = _secret(environment, "AWS_ACCESS_KEY_ID"), _secret(environment, "AWS_SECRET_ACCESS_KEY")
    if (identity is None) != (key is None):
        raise SourceError(
            "spec.model.source.secretName: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together; one is missing"
        )
    keys = AwsKeys(identity, key, _secret(environment, "AWS_SESSION_TOKEN")) if identity and key else None
    endpoint = args.endpoint or SourceEndpoint(url=f"https://s3.{region}.amazonaws.com")
    return BucketPrefix(args.uri, keys, region), endpoint


async def _cached(args: FetchArgs, progress: Progress) -> Manifest | None:
    """The manifest of a finished checkpoint that is what is asked for, to the last byte."""
    found = Manifest.read(args.destination)
    if found is None or not found.answers(args.uri, args.revision, args.digest):
        return None
    progress.begin(StartupPhase.VERIFYING, sum(entry.size for entry in found.files.values()))
    if not await asyncio.to_thread(found.holds, args.destination, progress.add):
        logger.warning("%s is not what its manifest says; it is fetched again", args.destination)
        return None
    logger.info("found in the cache: %s", _described(found))
    return found


async def _fetched(
    args: FetchArgs, source: Source, transport: Transport, staging: Staging, progress: Progress
) -> Manifest:
    patience = Patience(args.patience_s)
    listing = await patience.persist(lambda: source.listing(transport))
    total = listing.num_bytes
    if total > args.max_bytes:
        raise Infeasible(
            f"spec.model.source.uri: {args.uri} holds {amount(total)}, more than the {amount(args.max_bytes)} that the "
            f"operator's settings allow; name a smaller model, or raise the bound"
        )
    there = staging.resume(listing.files)
    staging.check_room(total - there)
    logger.info("%s: %d files, %s%s", args.uri, len(listing.files), amount(total), _state(args, listing, there))
    download = Download(source, transport, staging, patience, progress, args.connections)
    wrong: Sequence[RemoteFile] = listing.files
    for _ in range(_TRIES):
        progress.begin(StartupPhase.FETCHING, total, sum(staging.size(file) for file in listing.files))
        await download.run(listing, wrong)
        progress.begin(StartupPhase.VERIFYING, total)
        sha256s = await asyncio.to_thread(
            manifests.hashes, staging.partial, [file.path for file in listing.files], progress.add
        )
        wrong = [file for file in listing.files if not _is_right(staging, file, sha256s[file.path])]
        for file in wrong:
            logger.warning("%s has another checksum than the source lists; it is fetched again", file.path)
            staging.forget(file)
        if not wrong:
            break
    else:
        raise SourceError(
            f"spec.model.source.uri: {args.uri}: {wrong[0].path} is not what the source lists: wrong checksum"
        )
    manifest = Manifest(
        uri=args.uri,
        revision=args.revision,
        commit=listing.commit,
        digest=manifests.digest(sha256s),
        files={file.path: FileEntry(size=file.size, sha256=sha256s[file.path]) for file in listing.files},
    )
    if args.digest not in (None, manifest.digest):
        staging.discard()
        raise SourceError(
            f"spec.model.source.digest: {args.uri} has {manifest.digest}, not {args.digest}; correct the pin if you "
            f"trust what is there now, or name the revision that you meant"
        )
    await asyncio.to_thread(staging.publish, manifest)
    logger.info("complete: %s", _described(manifest))
    return manifest


def _is_right(staging: Staging, file: RemoteFile, sha256: str) -> bool:
    if file.sha256 is not None:
        return sha256 == file.sha256
    return file.git_sha1 is None or manifests.git_sha1(staging.partial / file.path) == file.git_sha1


def _secret(environment: Mapping[str, str], name: str) -> str | None:
    """A value from the Secret. Raises `SourceError` for what cannot be sent, without showing it."""
    # A Secret made from a file often ends in a newline.
    value = environment.get(name, "").strip()
    if value and not (value.isascii() and value.isprintable()):
        raise SourceError(
            f"spec.model.source.secretName: its {name} holds characters that no header can; check the Secret"
        )
    return value or None


def _described(manifest: Manifest) -> str:
    commit = f" at commit {manifest.commit}" if manifest.commit else ""
    return f"{manifest.uri}{commit}; to pin it: spec.model.source.digest: {manifest.digest}"


def _state(args: FetchArgs, listing: Listing, there: int) -> str:
    commit = f", {args.revision or 'main'} is commit {listing.commit}" if listing.commit else ""
    return commit + (f", {amount(there)} of them here already" if there else "")
