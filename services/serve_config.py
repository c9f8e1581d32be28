"""The Serve config of a cluster, made by the builder that also makes what runs on this machine."""

from __future__ import annotations

from typing import Any

import yaml
from ray.serve import Application
from ray.serve._private.build_app import build_app
from ray.serve.deployment import Deployment, deployment_to_schema
from ray.serve.schema import ServeDeploySchema

from evospec.config import Config
from services.app import APPLICATION, build, build_application
from services.limits import without_limits
from services.secret_settings import secret_variables, without_secrets
from services.serve_environment import OF_APPLICATION, OF_NODES
from services.serve_logs import quiet_logs
from services.served import served_models
from services.settings import ConfigError

PROXIES = "EveryNode"
# Of what the builder sets, all that Serve changes on running replicas, and what they reserve. The rest
# follows from the arguments: replicas are replaced when it changes.
OPTIONS = frozenset(
    {
        "name",
        "num_replicas",
        "autoscaling_config",
        "max_ongoing_requests",
        "max_queued_requests",
        "graceful_shutdown_timeout_s",
        "user_config",
        "ray_actor_options",
    }
)


def serve_config(config: Config) -> dict[str, Any]:
    """What `serve deploy` and a RayService's `serveConfigV2` take.

    Limits (`services.limits`) are in `deployments` alone. Serve starts an application anew when its `args`
    change; so other limits leave its replicas running, as they do on one machine.

    Raises:
        ConfigError: no port is set.
        SecretInListError: see `without_secrets`.
    """
    serving = config.serve
    if serving.port == 0:
        raise ConfigError("serve.port: 0 is a free port of one machine: a Serve config needs a fixed one")
    logs = quiet_logs(serving.log_format).model_dump(mode="json", exclude_defaults=True)
    written = {
        "proxy_location": PROXIES,
        "http_options": {"host": serving.host, "port": serving.port},
        "logging_config": logs,
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": f"{build.__module__}:{build.__name__}",
                "args": without_limits(without_secrets(config)),
                "runtime_env": {"env_vars": dict(OF_APPLICATION)},
                "logging_config": dict(logs),
                "deployments": deployments(build_application(served_models(config))),
            }
        ],
    }
    ServeDeploySchema.model_validate(written)
    return written


def deployments(application: Application) -> list[dict[str, Any]]:
    """Options of each deployment, by name."""
    built = build_app(application, name=APPLICATION).deployments
    return sorted((_options(one) for one in built), key=lambda options: str(options["name"]))


def dump(config: Config) -> str:
    """The Serve config as YAML, with a head that says what the nodes' environment must hold."""
    lines = ["made by `evospec serve --dump-config`; Ray's nodes need in their environment:"]
    lines += [f"  {name}={value}" for name, value in OF_NODES.items()]
    lines += [f"  {name} (secret)" for name in secret_variables(config)]
    head = "".join(f"# {line}\n" for line in lines)
    return head + yaml.safe_dump(serve_config(config), sort_keys=False, width=100, allow_unicode=True)


def _options(deployment: Deployment) -> dict[str, Any]:
    schema = deployment_to_schema(deployment)
    return schema.model_dump(mode="json", include=set(OPTIONS), exclude_unset=True)
