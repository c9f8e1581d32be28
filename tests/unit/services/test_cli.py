"""The server's commands on bad input: one line, exit code 2, and Ray is never started."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from services import serve_command
from services.cli import app
from services.interrupts import interrupt_once
from services.ray_runtime import LocalRay
from tests.tiny import TinyFolders, tiny_folders

Serve = Callable[..., Result]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def serve(folders: TinyFolders, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs `serve` on the tiny model; starting Ray fails the test."""

    def started(_: LocalRay, **settings: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(serve_command, "interrupt_once", lambda: None)
    monkeypatch.setattr(LocalRay, "start", started)

    def run(*options: str) -> Result:
        models = ["--target", str(folders.target), "--drafter", str(folders.drafter), "--port", "0"]
        return CliRunner().invoke(app, ["serve", *models, *options])

    return run


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("starting")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_an_unknown_model(serve: Serve) -> None:
    assert "no model 'smollm3'" in one_line(serve("--target", "smollm3"))


def test_a_missing_drafter(serve: Serve) -> None:
    assert "no drafter at '/nowhere'" in one_line(serve("--drafter", "/nowhere"))


def test_a_drafter_of_another_target(serve: Serve, tmp_path: Path) -> None:
    other = tiny_folders(tmp_path, seed=5)
    assert "not for this target" in one_line(serve("--drafter", str(other.drafter)))


def test_a_drafter_of_another_shape(serve: Serve, tmp_path: Path) -> None:
    other = tiny_folders(tmp_path, vocab=300)
    assert "vocabulary 300" in one_line(serve("--drafter", str(other.drafter)))


def test_a_taken_port(serve: Serve, listener: int) -> None:
    line = one_line(serve("--port", str(listener)))
    assert f"127.0.0.1:{listener}: another program listens there" in line


def test_an_address_of_another_machine(serve: Serve) -> None:
    assert "can't listen on 192.0.2.1:0" in one_line(serve("--host", "192.0.2.1"))


def test_a_port_out_of_range(serve: Serve) -> None:
    assert "serve.port on the command line" in one_line(serve("--port", "70000"))


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("section", "scheme"), [("registry", "redis"), ("semantic", "http")], ids=["redis", "qdrant"]
)
def test_an_unreachable_server(serve: Serve, tmp_path: Path, section: str, scheme: str) -> None:
    port = closed_port()
    file = tmp_path / "evospec.yaml"
    file.write_text(f"{section}: {{url: '{scheme}://127.0.0.1:{port}'}}")
    line = one_line(serve("--config", str(file)))
    assert f"127.0.0.1:{port}" in line
    assert "not reachable" in line


def test_a_wrong_config_file(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "evospec.yaml"
    file.write_text("engine: {draft_lenght: 3}")
    assert one_line(serve("--config", str(file))) == f"error: {file}: unknown key engine.draft_lenght"


def test_weights_need_a_registry() -> None:
    assert "no weight registry is named" in one_line(CliRunner().invoke(app, ["weights", "list"]))


def test_weights_of_an_unreachable_registry() -> None:
    url = f"redis://:secret@127.0.0.1:{closed_port()}"
    line = one_line(CliRunner().invoke(app, ["weights", "show", "1", "--registry", url]))
    assert "not reachable" in line
    assert "secret" not in line


def test_who_decides_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr("getpass.getuser", unknown)
    result = CliRunner().invoke(app, ["weights", "promote", "1", "--registry", "redis://127.0.0.1:1"])
    assert "give --by NAME" in one_line(result)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["serve"],
        ["demo"],
        ["weights"],
        *(["weights", verb] for verb in ("list", "show", "log", "promote", "revoke", "rollback")),
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, json\nfrom services.cli import app\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'ray', 'redis'} & sys.modules.keys())))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_the_second_interrupt_does_not_disturb_the_first() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        interrupt_once()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
