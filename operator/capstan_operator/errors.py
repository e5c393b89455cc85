"""The errors of the operator.

    CapstanOperatorError
    ├── InvalidConfig     the operator's own configuration is wrong                the process ends with exit code 2
    ├── ModelNotFound     the model's directory does not exist in this world       shown as a condition, tried again
    ├── WorldError        a process could not be started or a file not written     shown as a condition, tried again
    │   ├── Gone          the InferenceDeployment itself was deleted               its loop ends
    │   ├── NameTaken     an object that we need exists and belongs to another     waited for, or renamed by a person
    │   └── ApiError      the API server said no
    │       ├── ApiConflict     409: it exists already, or is another one by now   handled where it was asked for
    │       ├── ApiNotFound     404: it is gone, or this API server never had it   handled where it was asked for
    │       ├── ApiForbidden    401, 403: credentials or rights are missing        shown; a person has to act
    │       ├── ApiInvalid      400, 422: it does not take what we sent            shown; a person has to act
    │       └── ApiUnavailable  429, 5xx, no answer                                shown; not asked again too soon
    ├── NotLeader         another operator acts, or may do so by now               the write was not sent
    ├── AdminError        an engine or gateway refused or did not answer           the next turn tries again
    │   └── Conflict      limits were changed by somebody else in between          the next turn reads them anew
    ├── ScrapeError       metrics could not be read, or must not be believed       counts as missing data
    └── BadReview         the webhook was sent what is no AdmissionReview          answered with 400

None of the others ends the operator: a turn that fails is reported and the next one starts from what is really there.
"""


class CapstanOperatorError(Exception):
    """Base of all. The message names the thing and, where there is one, the remedy."""


class InvalidConfig(CapstanOperatorError):
    """The operator's own configuration is wrong. One line per fault."""


class ModelNotFound(CapstanOperatorError):
    """The model's directory does not exist in this world."""


class WorldError(CapstanOperatorError):
    """The world could not do what was asked."""


class Gone(WorldError):
    """The InferenceDeployment was deleted: there is nothing left to act for."""


class NameTaken(WorldError):
    """An object of the name that is needed exists and is not ours: it is on its way out, or somebody else's."""


class ApiError(WorldError):
    """The API server refused or could not be reached. `code` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ApiConflict(ApiError):
    """409: the object exists already, or is not the one that was meant."""


class ApiNotFound(ApiError):
    """404: the object is gone, or the API server does not serve its kind."""


class ApiForbidden(ApiError):
    """401 or 403: the operator's credentials or rights do not suffice."""


class ApiInvalid(ApiError):
    """400, 422 or another refusal of what was sent; sending it again would not help."""


class ApiUnavailable(ApiError):
    """429, 5xx or no answer. Nothing is sent again before `retry_after_s` have passed, when the server named them."""

    def __init__(self, message: str, code: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message, code)
        self.retry_after_s = retry_after_s


class NotLeader(CapstanOperatorError):
    """The lease is not held, or not surely enough: the write was not sent."""


class AdminError(CapstanOperatorError):
    """An engine or gateway refused a request on its admin port, or did not answer."""


class Conflict(AdminError):
    """The version that a change was based on is no longer the current one."""


class ScrapeError(CapstanOperatorError):
    """Metrics could not be read, or are such that they must not be believed."""


class BadReview(CapstanOperatorError):
    """What the admission webhook was sent is no AdmissionReview of a version that is known here."""
