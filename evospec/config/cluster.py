"""Settings of the registry, of rollouts and of the endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evospec.config.section import Section


class RegistryConfig(Section):
    """Where adapter versions are published."""

    url: str | None = Field(
        None,
        repr=False,
        description="Redis or Valkey URL (redis://, rediss://, unix:// or redis+sentinel://); null embeds a "
        "Valkey server.",
    )
    replica_url: str | None = Field(
        None, repr=False, description="The same server as replicas reach it: with a user that only reads."
    )
    namespace: str = Field("evospec", min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")
    poll_s: float = Field(1.0, gt=0, description="Replicas look for a new version this often, plus jitter.")
    keep_versions: int = Field(8, ge=2)
    signing_key: str | None = Field(None, repr=False, description="HMAC key for manifests.")
    max_blob_mb: float = Field(256.0, gt=0)

    @model_validator(mode="after")
    def _one_server(self) -> RegistryConfig:
        if self.replica_url is not None and self.url is None:
            raise ValueError("replica_url needs url: both name the same server")
        return self


class RolloutConfig(Section):
    """How a new adapter version reaches the replicas."""

    canary: bool = Field(
        True,
        description="Try each version on a share of the replicas before all run it. A single replica runs "
        "it at once.",
    )
    share: float = Field(0.25, gt=0, le=0.5, description="Share of the replicas in a canary; at least one.")
    error_rate: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="Chance that a version as good as the stable one is revoked, however often one looks.",
    )
    speed_margin: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Loss in tokens/s per request that a canary may show: machines differ. Acceptance length "
        "has no such margin.",
    )
    min_requests: int = Field(8, ge=2, description="Requests on each side before a version is promoted.")
    soak_s: float = Field(20.0, ge=0, description="A version runs this long in its canary at least.")
    max_minutes: float = Field(
        30.0, gt=0, description="A version not shown to be worse in this time is promoted."
    )
    poll_s: float = Field(1.0, gt=0, description="Time between two looks at the replicas' counters.")


class ServeConfig(Section):
    """The HTTP endpoint and its replicas."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    replicas: int = Field(1, ge=1, le=1024, description="Decoding replicas; with max_replicas, the fewest.")
    max_replicas: int | None = Field(
        None, ge=1, le=1024, description="Under load, replicas are added up to so many; null adds none."
    )
    target_ongoing_requests: float | None = Field(
        None,
        gt=0,
        description="Requests per replica, running and waiting, that adding and removing replicas aims at; "
        "null: engine.max_batch.",
    )
    upscale_delay_s: float = Field(10.0, ge=0, description="More load for so long adds replicas.")
    downscale_delay_s: float = Field(300.0, ge=0, description="Less load for so long removes replicas.")
    drain_s: float = Field(
        30.0,
        ge=0,
        description="Time that running requests get to finish before their replica is stopped.",
    )
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    resource: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Custom resource of Ray whose nodes replicas run on; each takes a thousandth of it.",
    )
    gateways: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that take in requests. Each holds back what the replicas can't take, up to "
        "max_queued_requests.",
    )
    cpus_per_actor: float = Field(
        0.0,
        ge=0,
        description="Processors that gateway, aligner, token index and rollout controller reserve each. "
        "Above 0 they stay away from nodes that have none, such as a cluster's head.",
    )
    max_queued_requests: int = Field(256, ge=1, description="Waiting requests before 429 is answered.")
    model_name: str | None = Field(None, description="Name shown by /v1/models; default: model.target.")
    request_timeout_s: float = Field(600.0, gt=0)
    chunk_ms: float = Field(
        20.0,
        ge=0,
        description="Least time between two pieces of a streamed answer; what cycles yield in between goes "
        "together, and with many answers under way it grows. 0 sends each cycle on.",
    )
    routing: Literal["default", "domain"] = Field(
        "default",
        description="Which replica a request goes to: the less busy of two; or, `domain`, one that served "
        "similar prompts, as long as it is not much busier than others.",
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="json: each line of a log is a JSON object, with the id of the request it is about, "
        "and requests are logged.",
    )
    dashboard: bool = Field(False, description="Ray's dashboard of a local cluster, on 127.0.0.1:8265.")

    @property
    def most_replicas(self) -> int:
        """That there may be at a time."""
        return self.max_replicas or self.replicas

    @model_validator(mode="after")
    def _bounds_fit(self) -> ServeConfig:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below replicas ({self.replicas})")
        return self
