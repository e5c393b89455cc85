"""The errors that the gateway answers with, in the shape of the OpenAI API.

    GatewayError                status  type                   code
    ├── InvalidRequest          400     invalid_request_error  (the cause's)
    ├── Unauthorized            401     authentication_error   invalid_api_key
    ├── ModelNotFound           404     not_found_error        model_not_found
    ├── RouteNotFound           404     not_found_error        route_not_found
    ├── MethodNotAllowed        405     invalid_request_error  method_not_allowed
    ├── RequestTimedOut         408     invalid_request_error  request_timeout
    ├── DeadlineExceeded        408     server_error           deadline_exceeded
    ├── StaleVersion            409     invalid_request_error  stale_version
    ├── BodyTooLarge            413     invalid_request_error  body_too_large
    ├── TooManyBytes            429     rate_limit_error       too_many_bytes        Retry-After
    ├── TooManyHeld             429     rate_limit_error       too_many_waiting      Retry-After
    ├── InternalError           500     server_error           internal_error
    ├── ReplicaLost             502     server_error           replica_lost
    ├── NoReplicaReady          503     server_error           no_replica_ready      Retry-After
    └── Draining                503     server_error           draining              Retry-After

429 means busy, 503 means not able at all; both say when to come back. Messages are for the client: no addresses and no
text of other errors. Before the first byte an error is a response, after it an event in the stream.
"""

from typing import Any, ClassVar


class GatewayError(Exception):
    """One answer that is not a success."""

    status: ClassVar[int]
    type: ClassVar[str] = "invalid_request_error"
    code: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The error object that clients parse."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the error; Retry-After in whole seconds, at least one."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


class InvalidRequest(GatewayError):
    status = 400


class Unauthorized(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class ModelNotFound(GatewayError):
    status = 404
    type = "not_found_error"
    code = "model_not_found"


class RouteNotFound(GatewayError):
    status = 404
    type = "not_found_error"
    code = "route_not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    code = "method_not_allowed"


class RequestTimedOut(GatewayError):
    status = 408
    code = "request_timeout"


class DeadlineExceeded(GatewayError):
    status = 408
    type = "server_error"
    code = "deadline_exceeded"


class StaleVersion(GatewayError):
    status = 409
    code = "stale_version"


class BodyTooLarge(GatewayError):
    status = 413
    code = "body_too_large"


class TooManyBytes(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "too_many_bytes"


class TooManyHeld(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "too_many_waiting"


class InternalError(GatewayError):
    status = 500
    type = "server_error"
    code = "internal_error"


class ReplicaLost(GatewayError):
    status = 502
    type = "server_error"
    code = "replica_lost"


class NoReplicaReady(GatewayError):
    status = 503
    type = "server_error"
    code = "no_replica_ready"


class Draining(GatewayError):
    status = 503
    type = "server_error"
    code = "draining"
