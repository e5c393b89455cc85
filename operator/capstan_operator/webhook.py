"""The admission webhook's door: HTTPS with a certificate that may come late and be renewed at any time.

Knows nothing of what is admitted. Every operator opens it, the one that acts and those that stand by: judging writes
nothing. Whoever reaches the port may ask, since an API server shows a client certificate only where somebody has
configured it to; so a few are read at a time, and nobody for longer than an API server would wait.

The surprising idea: without a certificate there is no listener, and that harms nobody, because the API server stores
what it cannot have judged; so an operator never waits for one.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from capstan_operator.errors import BadReview

logger = logging.getLogger(__name__)

PATH: Final = "/validate"
# An API server stores nothing above 1.5 MiB; a review holds the new object and the old one.
_LARGEST_REVIEW: Final = 4 << 20
# What the rest of the operator must spare at most is this many of the largest.
_MOST_AT_ONCE: Final = 4
# The chart's webhook configuration has the API server wait as long.
_PATIENCE_S: Final = 3.0
_LOOK_S: Final = 10.0

Review = Callable[[Any], dict[str, Any]]
"""From an AdmissionReview to its answer; raises `BadReview`."""


class Certificate:
    """A certificate and its key in two PEM files, and the TLS context that has the newest of them."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen: object = None
        self.context = _context()
        self.is_loaded = False

    def look(self) -> None:
        """Take over what the files hold now, if that is new and a pair; else what was served goes on being served."""
        try:
            seen = [(stat.st_ino, stat.st_mtime_ns) for stat in (path.stat() for path in self._files)]
            if seen == self._seen:
                return
            # Tried elsewhere first: a pair that does not match would leave half of it behind.
            _context().load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
        except OSError as error:
            # `ssl.SSLError` is one of them. Two files cannot be renewed at the same moment: the next look has both.
            level = logging.WARNING if self.is_loaded else logging.INFO
            logger.log(level, "the admission webhook's certificate %s cannot be used: %s", self._files[0], error)
            return
        self._seen, self.is_loaded = seen, True
        logger.info("the admission webhook has the certificate in %s", self._files[0])


class Webhook:
    """Serves reviews until it is cancelled."""

    def __init__(self, review: Review, certificate: Certificate) -> None:
        self._review = review
        self._certificate = certificate
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self.port: int | None = None
        """Where it listens; None before it has a certificate."""

    async def run(self, host: str, port: int) -> None:
        """Listen as soon as there is a certificate, and the port."""
        app = web.Application(client_max_size=_LARGEST_REVIEW)
        app.router.add_post(PATH, self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            while True:
                self._certificate.look()
                if self._certificate.is_loaded and self.port is None:
                    await self._listen(runner, host, port)
                await asyncio.sleep(_LOOK_S)
        finally:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner, host: str, port: int) -> None:
        try:
            await web.TCPSite(runner, host, port, ssl_context=self._certificate.context).start()
        except OSError as error:
            logger.error("admission.port: %s:%d cannot be used: %s", host, port, error.strerror)
            return
        self.port = runner.addresses[0][1]
        logger.info("admission webhook on port %d", self.port)

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_PATIENCE_S), self._room:
                document = json.loads(await request.read())
                return web.json_response(self._review(document))
        except TimeoutError:
            return web.Response(status=503, text=f"not judged within {_PATIENCE_S:g} s")
        except BadReview as error:
            return web.Response(status=400, text=str(error))
        except (ValueError, RecursionError) as error:
            return web.Response(status=400, text=f"the body is not JSON: {error}")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
