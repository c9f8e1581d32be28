"""Blocks of docs/operations.md that are marked as tried, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from evospec.config import RegistryConfig, SemanticConfig
from evospec.wire import IndexPoint
from services.registry import open_registry
from services.token_index import open_token_index
from tests.integration.process_kit import kill_descendants, marked_environment
from tests.integration.registry_kit import blob_of, eventually, publish, server_binary, states
from tests.integration.server_kit import HOST, Server, free_port, plain_settings
from tests.integration.test_registry_access import acl_with_passwords

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TRIED = dict(re.findall(r"<!-- tried: ([\w-]+) -->\n```bash\n(.*?)```", PAGE, flags=re.DOTALL))
RESTORED = "restored"
LIMIT_S = 180.0


@dataclass(frozen=True, slots=True)
class Operator:
    """A shell in which the names of the page mean something."""

    folder: Path
    names: dict[str, str]

    def run(self, block: str, **names: str) -> str:
        """What a block prints. Fails with what it says when one of its commands does."""
        commands = self.folder / "bin"
        commands.mkdir(exist_ok=True)
        evospec = commands / "evospec"
        main = "from services.cli import main; main()"
        evospec.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{main}" "$@"\n')
        evospec.chmod(0o700)
        environment = {
            **marked_environment(RESTORED),
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            **self.names,
            **names,
        }
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", TRIED[block]],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    """Redis with the registry's users, an administrator, and an append-only file."""
    binary = server_binary("redis")
    assert binary is not None
    port = free_port()
    acl = tmp_path / "users.acl"
    acl.write_text(acl_with_passwords() + "user admin on >admin ~* &* +@all\n")
    settings = [*plain_settings(port), f"aclfile {acl}", "appendonly yes"]
    with Server(binary, tmp_path / "server", port, settings) as server:
        yield server


@pytest.fixture
def operator(redis: Server, tmp_path: Path) -> Operator:
    return Operator(
        tmp_path,
        {
            "ADMIN_URL": f"redis://admin:admin@{HOST}:{redis.port}",
            "REGISTRY_URL": f"redis://operator:rotarepo@{HOST}:{redis.port}/0",
            "BACKUP": str(tmp_path),
        },
    )


def config(redis: Server) -> RegistryConfig:
    return RegistryConfig(url=f"redis://aligner:rengila@{HOST}:{redis.port}/0")


def replica_gets_in(redis: Server, password: str) -> bool:
    with closing(Redis(HOST, redis.port, username="replica", password=password)) as client:
        try:
            return bool(client.ping())
        except AuthenticationError:
            return False


def test_each_marked_block_is_tried_here() -> None:
    used = {"rollback", "redis-rotate-add", "redis-rotate-remove", "redis-backup", "redis-restore"}
    assert set(TRIED) == used | {"qdrant-folder"}


def test_weights_are_rolled_back(redis: Server, operator: Operator) -> None:
    with closing(open_registry(config(redis))) as registry:
        for version in (1, 2, 3):
            publish(registry, version, 1)
        said = operator.run("rollback")
        assert "dry run, nothing was changed" in said
        assert registry.rollout().stable == 1
        assert states(registry) == {1: "stable", 2: "revoked", 3: "revoked"}


def test_a_password_is_rotated_with_no_moment_without_one(redis: Server, operator: Operator) -> None:
    old, new = "acilper", "another-one"
    operator.run("redis-rotate-add", NEW_PASSWORD=new)
    assert replica_gets_in(redis, old)
    assert replica_gets_in(redis, new)
    with closing(Redis(HOST, redis.port, username="replica", password=old)) as connected:
        connected.ping()
        operator.run("redis-rotate-remove", OLD_PASSWORD=old)
        assert not replica_gets_in(redis, old)
        with pytest.raises(AuthenticationError):  # it was cut, and can't come back
            connected.ping()
    assert replica_gets_in(redis, new)


def test_a_registry_comes_back_from_its_backup(redis: Server, operator: Operator, tmp_path: Path) -> None:
    with closing(open_registry(config(redis))) as registry:
        publish(registry, 1, 1, training_state=b"moments")
        operator.run("redis-backup")
        publish(registry, 2, 1)
    redis.kill()
    server = tmp_path / "server"
    try:
        said = operator.run("redis-restore", DATA=str(server), CONFIG=str(server / "server.conf"))
        assert "stable" in said
        with closing(open_registry(config(redis))) as registry:
            assert states(registry) == {1: "stable"}
            assert registry.fetch(1).blob == blob_of(1)
            publish(registry, 3, 2)
        with closing(Redis(HOST, redis.port, username="admin", password="admin")) as admin:
            assert eventually(lambda: admin.info("persistence")["aof_rewrite_in_progress"] == 0)
            assert admin.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        kill_descendants(RESTORED)  # it made a daemon of itself


def test_an_embedded_index_comes_back_from_its_copy(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    settings = SemanticConfig(path=str(folder))
    vector = np.ones(8, dtype=np.float32)
    with closing(open_token_index(settings, "target", 8)) as index:
        index.write([IndexPoint(vector, (5, 6), (1.0, 1.0), "", "target")])
    Operator(tmp_path, {"INDEX": str(folder), "BACKUP": str(tmp_path / "kept")}).run("qdrant-folder")
    with closing(open_token_index(settings, "target", 8)) as index:
        assert index.search(vector[None], "", 1)[0].token_ids == (5, 6)
