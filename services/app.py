"""The Serve application: on this machine and on a cluster the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from actors.handles import RemoteReplicas
from actors.replica import DecodingReplica
from evospec.config import Config
from services.companions import Companions
from services.domain_router import CLASS as ROUTER
from services.gateway import Gateway, GatewayLimits
from services.live.cluster_view import RayClusterView
from services.placement import marked
from services.serve_logs import gateway_logs
from services.served import Served, aligns, retrieves, rolls_out, served_models
from services.settings import ConfigError, config_from

APPLICATION = "evospec"
REPLICAS = "DecodingReplica"
GATEWAY = "Gateway"
COMPANIONS = "Companions"
HEALTH_PERIOD_S = 5.0
DRAIN_POLL_S = 0.2
LOOK_BACK_S = 15.0  # load is averaged over so long; the delays come on top
CODE_VERSION = "1"
STATUS_TIMEOUT_S = 10.0


def build(args: dict[str, Any]) -> Application:
    """The application of a cluster; `import_path` of its Serve config.

    Args:
        args: as a configuration file holds them. The environment of Ray's nodes goes above it, which is
            where addresses with passwords and keys come from.

    Raises:
        ConfigError: they can't be used, or name no registry.
    """
    models = served_models(config_from(args, "args of the Serve config"))
    for model in models:
        if aligns(model.config) and model.registry is None:
            raise ConfigError(
                "registry.url is not set: on a cluster, aligner and replicas meet at a server; set "
                "EVOSPEC_REGISTRY__URL on all of Ray's nodes, or alignment.enabled to false"
            )
    return build_application(models)


def build_application(models: Sequence[Served]) -> Application:
    """Gateway in front of the decoding replicas of one or several models, and what works beside these.

    A replica takes as many requests as two full batches: one that runs, one that is
    ready to join. What goes beyond waits in the gateway, up to `serve.max_queued_requests`.
    """
    room = sum(_room(model.config) for model in models)
    settings = models[0].config.serve
    gateway = serve.deployment(
        name=GATEWAY,
        # More than replicas and waiting line hold: overload shows there, and is told in OpenAI's words.
        max_ongoing_requests=room,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        user_config=GatewayLimits.of(settings).as_dict(),
        ray_actor_options={"num_cpus": settings.cpus_per_actor},
        num_replicas=settings.gateways,
        logging_config=gateway_logs(settings.log_format),
    )(serve.ingress()(Gateway))
    return _unchanged(gateway).bind(
        [model.config for model in models],
        [_bind_replicas(model) for model in models],
        [_view(model) for model in models],
        _bind_companions(models),
    )


def _bind_replicas(model: Served) -> Application:
    config, settings = model.config, model.config.serve
    replicas = serve.deployment(
        name=REPLICAS + model.group,
        max_ongoing_requests=_per_replica(config),
        max_queued_requests=settings.max_queued_requests,
        max_constructor_retry_count=2,
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        request_router_config=request_router(config),
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
            "resources": marked(settings.resource),
        },
        **replica_count(config),
    )(DecodingReplica)
    return _unchanged(replicas).bind(config, model.registry, config.served_name, model.group)


def _bind_companions(models: Sequence[Served]) -> Application | None:
    """None where nothing works beside the replicas."""
    if not any(_has_companions(model.config) for model in models):
        return None
    settings = models[0].config.serve
    companions = serve.deployment(
        name=COMPANIONS,
        num_replicas=1,
        max_constructor_retry_count=2,
        health_check_period_s=HEALTH_PERIOD_S,
        ray_actor_options={"num_cpus": settings.cpus_per_actor},
    )(Companions)
    return _unchanged(companions).bind(list(models), [_reached(model) for model in models])


def _has_companions(config: Config) -> bool:
    return aligns(config) or retrieves(config) or rolls_out(config)


def _reached(model: Served) -> RemoteReplicas:
    return RemoteReplicas(REPLICAS + model.group, APPLICATION, STATUS_TIMEOUT_S)


def _view(model: Served) -> RayClusterView:
    """What the dashboard looks at: of the actors beside the replicas, those that are started."""
    return RayClusterView(
        _reached(model),
        model.registry,
        model.group,
        aligns=aligns(model.config),
        tries=rolls_out(model.config),
        retrieves=retrieves(model.config),
    )


def _per_replica(config: Config) -> int:
    return 2 * config.engine.max_batch


def _room(config: Config) -> int:
    """Requests that the gateway takes in for a model, so that it is the gateway that refuses."""
    settings = config.serve
    return settings.most_replicas * _per_replica(config) + 2 * settings.max_queued_requests


def replica_count(config: Config) -> dict[str, Any]:
    """Serve's options for a fixed number of replicas, or one that follows the load."""
    settings = config.serve
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=settings.replicas,
            initial_replicas=settings.replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests or config.engine.max_batch,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
            look_back_period_s=LOOK_BACK_S,
        )
    }


def request_router(config: Config) -> RequestRouterConfig:
    """Serve's own, or ours: a replica that suits may have half a batch more than the least busy one."""
    if config.serve.routing == "default":
        return RequestRouterConfig()
    slack = max(config.engine.max_batch // 2, 1)
    ours: dict[str, Any] = {"request_router_class": ROUTER, "request_router_kwargs": {"slack": slack}}
    return RequestRouterConfig(**ours)


def _unchanged(deployment: Deployment) -> Deployment:
    """Says that its code is the same at each deployment: other limits then need no new replicas.

    Serve takes an application that is run again from Python for a new one otherwise.
    """
    return deployment.options(version=CODE_VERSION, _internal=True)
