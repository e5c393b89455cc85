"""Every name that two parts must agree on: API group, labels, headers, ports, environment variables.

Knows nothing of what the names are used for. A string that crosses a process boundary is written here once.
"""

from typing import Final

GROUP: Final = "capstan.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "InferenceDeployment"
PLURAL: Final = "inferencedeployments"
SINGULAR: Final = "inferencedeployment"
SHORT_NAME: Final = "infd"

LABEL_DEPLOYMENT: Final = f"{GROUP}/deployment"
LABEL_REVISION: Final = f"{GROUP}/revision"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"

# HTTP headers. The class header is set by clients or by the gateway from a model alias.
HEADER_SLO_CLASS: Final = "x-capstan-slo-class"
HEADER_DEADLINE_MS: Final = "x-capstan-deadline-ms"
HEADER_REQUEST_ID: Final = "x-request-id"
# Seconds that a request had already waited at the gateway, so that the engine's scheduler ages it fairly.
HEADER_WAITED_MS: Final = "x-capstan-waited-ms"
# Names the replica that answered; set by the gateway on every proxied response.
HEADER_REPLICA: Final = "x-capstan-replica"
# On whole (not streamed) responses the engine reports what only it can see: arrival to first token, mean token gap.
HEADER_TTFT_MS: Final = "x-capstan-ttft-ms"
HEADER_TPOT_MS: Final = "x-capstan-tpot-ms"

# The code of the error that an engine's front end answers with, in its last words, to the requests that its core died
# under: one of them may be what killed it.
ERROR_ENGINE_DEAD: Final = "engine_dead"

# Ports inside a pod. The `processes` world takes free loopback ports instead.
PORT_GATEWAY: Final = 8000
PORT_GATEWAY_ADMIN: Final = 9000
PORT_ENGINE: Final = 8100
PORT_ENGINE_ADMIN: Final = 9100

# The admin token reaches a process through its environment only: never through arguments or files in the repo.
ENV_ADMIN_TOKEN: Final = "CAPSTAN_ADMIN_TOKEN"  # noqa: S105 - the variable's name, not a token
# Optional bearer key that clients of the gateway must present.
ENV_API_KEY: Final = "CAPSTAN_API_KEY"
