"""`evospec weights` against real Redis and Valkey servers."""

from __future__ import annotations

import json
import random
from typing import get_args

import pytest
from click.testing import Result
from redis import Redis
from typer.testing import CliRunner

from evospec.config import RegistryConfig
from evospec.errors import DecisionRefusedError
from evospec.wire import Decision, DecisionKind, VersionState
from services.cli import app
from services.registry import RedisWeightRegistry
from services.rollout_preview import Outcome
from services.weights_command import decide as carry_out
from tests.integration.registry_kit import blob_of, contents, decide, manifest_of, publish, states

OPERATOR_DECISIONS = tuple(kind for kind in get_args(DecisionKind) if kind != "canary")


@pytest.fixture
def filled(registry: RedisWeightRegistry) -> RedisWeightRegistry:
    """Four versions published where three are kept; one replica is behind."""
    for version in range(1, 5):
        publish(registry, version)
    registry.acknowledge("first", 4)
    registry.acknowledge("second", 3)
    return registry


@pytest.fixture
def in_canary(filled: RedisWeightRegistry) -> RedisWeightRegistry:
    """Version 4 is stable, and 5 is tried on one of two replicas."""
    publish(filled, 5, state="candidate")
    decide(filled, "canary", 5, "second")
    filled.acknowledge("second", 5)
    return filled


def weights(config: RegistryConfig, *arguments: str) -> Result:
    options = ["--registry", str(config.url)]
    environment = {"EVOSPEC_REGISTRY__NAMESPACE": config.namespace, "COLUMNS": "200"}
    return CliRunner().invoke(app, ["weights", *arguments, *options], env=environment)


def line_of(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return result.stdout.strip()


def error_of(result: Result) -> str:
    assert result.exit_code == 2, result.stdout
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


@pytest.mark.usefixtures("filled")
def test_list_shows_what_is_kept_and_who_runs_it(registry_config: RegistryConfig) -> None:
    result = weights(registry_config, "list", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["stable"], found["candidate"], found["canary"]) == (4, 0, [])
    assert [version["version"] for version in found["versions"]] == [2, 3, 4]
    assert found["replicas"] == {"first": 4, "second": 3}
    table = weights(registry_config, "list").stdout
    assert "4 *" in table
    assert "second" in table
    assert "* stable: for all replicas" in table


@pytest.mark.usefixtures("in_canary")
def test_list_marks_the_candidate_and_its_canaries(registry_config: RegistryConfig) -> None:
    table = weights(registry_config, "list").stdout
    assert "4 *" in table
    assert "5 +" in table
    assert "second (canary)" in table
    assert "+ candidate: in its canary on second" in table
    found = json.loads(weights(registry_config, "list", "--json").stdout)
    assert (found["stable"], found["candidate"], found["canary"]) == (4, 5, ["second"])
    assert [version["state"] for version in found["versions"]] == ["stable", "stable", "canary"]


@pytest.mark.usefixtures("registry")
def test_an_empty_registry_says_so(registry_config: RegistryConfig) -> None:
    assert "nothing was published" in weights(registry_config, "list").stdout
    assert json.loads(weights(registry_config, "log", "--json").stdout) == []


def test_list_shows_who_runs_the_base(registry_config: RegistryConfig, filled: RedisWeightRegistry) -> None:
    decide(filled, "rollback", 0)
    for number in range(6):
        filled.acknowledge(f"replica-{number}", 0)
    table = weights(registry_config, "list").stdout
    assert "0 *" in table
    assert "replica-3, 2 more" in table


@pytest.mark.usefixtures("filled")
def test_list_shows_the_others_when_a_manifest_is_damaged(
    registry_config: RegistryConfig, raw: Redis
) -> None:
    raw.hset("test:m:3", "manifest", "{}")
    table = weights(registry_config, "list").stdout
    rows = {line.split("│")[1].strip(): line for line in table.splitlines() if line.startswith("│")}
    assert list(rows) == ["4 *", "3", "2", "0"]
    assert "damaged" in rows["3"]
    assert "second" in rows["3"]
    damage = "version 3: manifest does not match its digest"
    assert f"damaged: {damage}; no replica takes it up: revoke it" in table
    found = json.loads(weights(registry_config, "list", "--json").stdout)
    assert [version["version"] for version in found["versions"]] == [2, 4]
    assert found["damaged"] == {"3": damage}
    assert error_of(weights(registry_config, "show", "3")) == f"error: {damage}"
    assert "it keeps 2, 3, 4" in error_of(weights(registry_config, "show", "1"))
    assert "version 3 is revoked" in line_of(weights(registry_config, "revoke", "3", "--reason", "damaged"))


@pytest.mark.usefixtures("filled")
def test_show_gives_the_manifest(registry_config: RegistryConfig) -> None:
    found = json.loads(weights(registry_config, "show", "3", "--json").stdout)
    assert (found["version"], found["parent"]) == (3, 2)
    assert manifest_of(3, blob_of(3)).sha256 in weights(registry_config, "show", "3").stdout


@pytest.mark.usefixtures("filled")
def test_a_version_that_is_not_kept_is_one_line(registry_config: RegistryConfig) -> None:
    found = error_of(weights(registry_config, "show", "1"))
    assert found == "error: the registry has no version 1; it keeps 2, 3, 4"


@pytest.mark.parametrize("version", ["0", "-3", "1.5", str(2**60)])
def test_numbers_that_are_no_versions_are_one_line(registry_config: RegistryConfig, version: str) -> None:
    assert error_of(weights(registry_config, "promote", "--by", "me", "--", version)).startswith("error: ")


def test_promote(registry_config: RegistryConfig, in_canary: RedisWeightRegistry) -> None:
    found = line_of(weights(registry_config, "promote", "5", "--by", "mara", "--reason", "no traffic"))
    assert found == "version 5 is stable now; 1 replica will change from 4"
    assert in_canary.rollout().stable == 5
    (event,) = in_canary.events(1)
    assert (event.event, event.version, event.by, event.reason) == ("promote", 5, "mara", "no traffic")
    again = line_of(weights(registry_config, "promote", "5"))
    assert again == "nothing to do: version 5 is stable already"


def test_revoke(registry_config: RegistryConfig, in_canary: RedisWeightRegistry) -> None:
    found = line_of(weights(registry_config, "revoke", "5", "--reason", "slow", "--by", "mara"))
    assert found == "version 5 is revoked, version 4 stays stable; 1 replica will change from 5"
    assert states(in_canary)[5] == "revoked"
    with pytest.raises(DecisionRefusedError, match="revoked before"):
        in_canary.publish(manifest_of(6, blob_of(5)), blob_of(5))


def test_rollback(registry_config: RegistryConfig, in_canary: RedisWeightRegistry) -> None:
    result = weights(registry_config, "rollback", "3", "--reason", "complaints", "--json")
    assert json.loads(result.stdout) == {
        "dry_run": False,
        "changed": True,
        "stable": 3,
        "candidate": 0,
        "revoked": [4, 5],
        "replicas": {"first": {"from": 4, "to": 3}, "second": {"from": 5, "to": 3}},
    }
    found = line_of(weights(registry_config, "rollback", "0", "--reason", "and more", "--by", "mara"))
    assert found == "version 3 is revoked, the base is stable now; 2 replicas will change: 1 from 4, 1 from 5"
    assert in_canary.rollout().stable == 0


def test_the_login_name_decides_where_no_other_is_given(
    registry_config: RegistryConfig, in_canary: RedisWeightRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ines")
    line_of(weights(registry_config, "promote", "5"))
    assert in_canary.events(1)[0].by == "ines"


@pytest.mark.usefixtures("in_canary")
@pytest.mark.parametrize("command", ["revoke", "rollback"])
def test_what_takes_versions_away_needs_a_reason(registry_config: RegistryConfig, command: str) -> None:
    assert "--reason" in error_of(weights(registry_config, command, "4"))


@pytest.mark.usefixtures("in_canary")
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_does_not_fit_is_one_line(
    registry_config: RegistryConfig, raw: Redis, dry_run: list[str]
) -> None:
    before = contents(raw)
    found = error_of(weights(registry_config, "rollback", "5", "--reason", "x", *dry_run))
    assert found.startswith("error: cannot roll back to version 5: it is newer than the stable version")
    assert "promote 5 instead" in found
    assert contents(raw) == before


@pytest.mark.usefixtures("in_canary")
@pytest.mark.parametrize(
    "arguments",
    [("promote", "5"), ("revoke", "4", "--reason", "x"), ("rollback", "0", "--reason", "x")],
)
def test_a_dry_run_changes_nothing(
    registry_config: RegistryConfig, raw: Redis, arguments: tuple[str, ...]
) -> None:
    before = contents(raw)
    assert line_of(weights(registry_config, *arguments, "--dry-run")).startswith(
        "dry run, nothing was changed"
    )
    assert contents(raw) == before


@pytest.mark.usefixtures("in_canary")
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_damaged_version_is_not_promoted(
    registry_config: RegistryConfig, raw: Redis, dry_run: list[str]
) -> None:
    raw.setrange("test:w:5", 0, b"damage")
    found = error_of(weights(registry_config, "promote", "5", *dry_run))
    assert found == "error: version 5: blob does not match its SHA-256"


def test_a_damaged_manifest_does_not_keep_anyone_from_rolling_back(
    registry_config: RegistryConfig, in_canary: RedisWeightRegistry, raw: Redis
) -> None:
    raw.hset("test:m:5", "manifest", "{}")
    foretold = line_of(weights(registry_config, "rollback", "3", "--reason", "x", "--dry-run"))
    assert "versions 4 and 5 would be revoked, version 3 would be stable" in foretold
    found = line_of(weights(registry_config, "rollback", "3", "--reason", "x"))
    assert found == (
        "versions 4 and 5 are revoked, version 3 is stable now; 2 replicas will change: 1 from 4, 1 from 5"
    )
    assert in_canary.rollout().stable == 3


def test_the_log_is_the_audit_trail(registry_config: RegistryConfig, in_canary: RedisWeightRegistry) -> None:
    weights(registry_config, "revoke", "5", "--reason", "answers [slowly]", "--by", "mara")
    table = weights(registry_config, "log").stdout
    for part in ("published", "canary", "revoke", "mara", "answers [slowly]", "UTC"):
        assert part in table
    found = json.loads(weights(registry_config, "log", "--json", "--limit", "2").stdout)
    assert [(event["event"], event["version"]) for event in found] == [("canary", 5), ("revoke", 5)]
    assert found[1]["sha256"] == manifest_of(5, blob_of(5)).sha256
    assert len(in_canary.events()) == len(json.loads(weights(registry_config, "log", "--json").stdout))


@pytest.mark.parametrize("seed", range(8))
def test_dry_runs_foretell_what_registries_do(
    registry_config: RegistryConfig, registry: RedisWeightRegistry, raw: Redis, seed: int
) -> None:
    """Any order of publications and decisions, with blobs that are lost in between."""
    rng = random.Random(seed)
    published = 0
    for step in range(25):
        if rng.random() < 0.5:
            state: VersionState = rng.choice(("stable", "candidate"))
            if state == "stable" or not registry.rollout().candidate:
                published += 1
                publish(registry, published, publisher=f"{seed}.{step}", state=state)
        elif rng.random() < 0.1:
            raw.delete(f"test:w:{rng.randint(max(1, published - 3), published + 1)}")
        else:
            kind = rng.choice(OPERATOR_DECISIONS)
            version = rng.randint(max(0, published - 4), published + 1)
            decision = Decision(kind=kind, version=version, by="test", reason="why")
            foretold = attempt(registry_config, decision, dry_run=True)
            assert attempt(registry_config, decision, dry_run=False) == foretold


def attempt(config: RegistryConfig, decision: Decision, *, dry_run: bool) -> object:
    """What is reported, or why it was refused."""
    try:
        found: Outcome = carry_out(config, decision, dry_run=dry_run)
    except DecisionRefusedError as error:
        return str(error)
    return found.after, found.moves, found.revoked, found.changed
