from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from infra.make_secrets import Passwords, files, write
from services.access import digest_of
from services.serve_config import serve_config
from services.settings import config_from, load_config
from tests.unit.infra.manifests import ROOT

FOLDER = ROOT / "infra" / "containers"
DOCKERFILE = FOLDER / "Dockerfile"
COMPOSE = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


def lint(text: str) -> str:
    """What hadolint has to say, whatever its weight."""
    done = subprocess.run(
        [HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def compose(text: str) -> dict[str, Any]:
    """Raises ValueError for what Compose's specification does not know."""
    read = PyCompose.from_yaml(text)
    for check in (read.validate, read.validate_networks, read.validate_secrets, read.validate_volumes):
        check()
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def test_the_linter_finds_nothing() -> None:
    assert lint(DOCKERFILE.read_text(encoding="utf-8")) == ""


@pytest.mark.parametrize(
    ("line", "planted", "rule"),
    [
        ("USER 10001:10001", "USSER 10001:10001", "unexpected"),
        ("WORKDIR /source", "WORKDIR source", "DL3000"),
        ('ENTRYPOINT ["evospec"]', "ENTRYPOINT evospec", "DL3025"),
    ],
)
def test_the_linter_finds_what_is_planted(line: str, planted: str, rule: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert line in text
    assert rule in lint(text.replace(line, planted, 1))


def test_images_run_as_nobody_in_particular_and_tell_their_health() -> None:
    for name, lines in _stages().items():
        users = [line.split()[1] for line in lines if line.startswith("USER ")]
        if name in ("cpu", "cuda", "runtime"):
            assert users[-1:] in ([], ["10001:10001"]), name  # none: that of the stage before
    runtime = "\n".join(_stages()["runtime"])
    assert "HEALTHCHECK" in runtime
    assert "USER 10001:10001" in runtime
    for label in ("version", "revision", "created", "licenses"):
        assert f"org.opencontainers.image.{label}=" in runtime


def test_the_base_image_is_named_once_and_with_a_release() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) == {"${PYTHON_IMAGE}", "runtime"}
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+-\S+$", text, re.MULTILINE)


def test_what_is_copied_is_let_through_and_secrets_are_not() -> None:
    rules = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in rules
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for line in DOCKERFILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in [part for part in line.split()[1:-1] if not part.startswith("--")]:
                assert (ROOT / source).exists(), source
                assert any(source == rule or source.startswith(f"{rule}/") for rule in allowed), source
    for path in (".git/config", "tests/tiny.py", "infra/containers/secrets/evospec.env", ".env"):
        assert not any(fnmatch.fnmatch(path, rule) or path.startswith(f"{rule}/") for rule in allowed)


def test_the_compose_file_is_valid() -> None:
    services = compose(COMPOSE)["services"]
    assert services.keys() == {"evospec", "registry", "qdrant", "prometheus", "grafana"}
    for name, service in services.items():
        assert re.search(r":[\w.-]+$", service["image"]), name
        assert "no-new-privileges:true" in service["security_opt"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), source


@pytest.mark.parametrize(
    ("line", "planted"),
    [
        ("command: [serve", "comand: [serve"),
        ("networks: [inside]", "networks: [insid]"),
        ("secrets: [registry-users]", "secrets: [registryusers]"),
        ("condition: service_healthy", "condition: service_helthy"),
        ("read_only: true", "read_only: maybe"),
    ],
)
def test_a_typo_in_the_compose_file_is_caught(line: str, planted: str) -> None:
    assert line in COMPOSE
    with pytest.raises(ValueError, match=r"\w"):
        compose(COMPOSE.replace(line, planted, 1))


def test_compose_holds_no_secrets_and_names_files_that_are_made() -> None:
    made = set(files(Passwords()))
    named = set(re.findall(r"[ \[]secrets/([\w.-]+)", COMPOSE))
    assert named <= made
    for service in compose(COMPOSE)["services"].values():
        assert not [key for key in service.get("environment", {}) if re.search("KEY|PASS|TOKEN", key)]


def test_the_configuration_of_the_compose_file_can_be_served() -> None:
    config = load_config(FOLDER / "evospec.yaml")
    assert serve_config(config)["http_options"]["port"] == 8000
    assert config.serve.dashboard  # else Prometheus finds nothing


def test_made_secrets_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords()
    made = files(passwords)
    for line in made["evospec.env"].splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    config = config_from({"semantic": {"url": "http://qdrant:6333"}}, "args")
    assert config.registry.url is not None
    assert config.registry.url.endswith("@registry:6379/0")
    assert config.access.keys[0].sha256 == digest_of(made["api-key"])
    assert config.access.admin_keys[0].sha256 == digest_of(made["admin-key"])
    assert made["qdrant.env"].strip().endswith(config.semantic.api_key or "-")
    users = made["users.acl"]
    assert "_SHA256" not in users
    for password in (passwords.replica, passwords.aligner, passwords.operator):
        assert f"#{digest_of(password)} " in users
        assert password not in users
    assert f"#{digest_of(made['gcs-store/password'])} " in made["gcs-store/users.acl"]


def test_keys_are_not_made_twice_and_are_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    write(folder)
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == set(files(Passwords()))
    assert (folder / "evospec.env").stat().st_mode & 0o777 == 0o600
    before = (folder / "api-key").read_text()
    command = [sys.executable, str(ROOT / "infra" / "make_secrets.py"), "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    assert "there already" in done.stderr
    assert (folder / "api-key").read_text() == before


def _stages() -> dict[str, list[str]]:
    stages: dict[str, list[str]] = {}
    name = ""
    for line in DOCKERFILE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"FROM \S+ AS (\S+)", line):
            name = found[1]
        if name:
            stages.setdefault(name, []).append(line)
    return stages
