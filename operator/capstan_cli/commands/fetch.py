"""`capstan fetch`: download a checkpoint as a replica would."""

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    uri: Annotated[str, typer.Argument(metavar="URI", help="hf://ORGANIZATION/NAME or s3://BUCKET/PREFIX.")],
    directory: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Where the checkpoint shall lie.")],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of an hf:// source.")] = None,
    digest: Annotated[str | None, typer.Option(help="What the files must add up to, as sha256:….")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Another server than the public one, private addresses included.")
    ] = None,
) -> None:
    """Download a checkpoint as a replica in a cluster would: verified, resumed after interruptions, no code in it.

    HF_TOKEN, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are taken from the environment.
    """
    from capstan_cli import obtain

    print(obtain.checkpoint(uri, directory, revision=revision, digest=digest, endpoint=endpoint))
