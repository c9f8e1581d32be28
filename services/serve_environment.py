"""What Ray Serve must find in the environment of its processes, on this machine and on a cluster."""

from __future__ import annotations

PROXY_MIDDLEWARES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
# Our code in Serve's actors never blocks its event loop, so it needs none of its own: each piece of an answer
# would change threads twice on its way.
OWN_LOOP = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
# Ray's workers have low priority by default: replicas would lose against whatever else runs on the machine.
NICENESS = "RAY_worker_niceness"
# Serve ends a proxy that is not ready by then. On a busy machine, or from a cold disk, Python alone may need
# longer than the five seconds that are Serve's default.
PROXY_START = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
# Calls between Serve's actors, and above all the pieces of streamed answers, as gRPC rather than as Ray's
# objects: that takes half the processor time. Ray's token guards these ports as well.
CALLS = "RAY_SERVE_USE_GRPC_BY_DEFAULT"
REPORTING = "RAY_USAGE_STATS_ENABLED"

# Read by Ray's daemons, and by processes that no runtime environment reaches.
OF_NODES: dict[str, str] = {
    PROXY_MIDDLEWARES: "services.unanswered:middlewares",
    OWN_LOOP: "0",
    CALLS: "1",
    NICENESS: "0",
    PROXY_START: "30",
    REPORTING: "0",
}
# Those of them that an application can bring along.
OF_APPLICATION: dict[str, str] = {OWN_LOOP: OF_NODES[OWN_LOOP]}
