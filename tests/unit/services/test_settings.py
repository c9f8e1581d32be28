from __future__ import annotations

import os
from pathlib import Path

import pytest

from evospec.config import Config
from services.settings import ConfigError, load_config


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("EVOSPEC_"):
            monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    file = folder / "evospec.yaml"
    file.write_text(text)
    return file


def test_without_file_and_environment_it_is_the_defaults() -> None:
    assert load_config() == Config()
    assert type(load_config()) is Config


def test_options_go_above_environment_above_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "engine: {draft_length: 2, max_batch: 3, max_length: 64}\nserve: {port: 1}")
    monkeypatch.setenv("EVOSPEC_ENGINE__DRAFT_LENGTH", "4")
    monkeypatch.setenv("EVOSPEC_ENGINE__MAX_BATCH", "5")
    config = load_config(file, {"engine.max_batch": 6})
    assert (config.engine.draft_length, config.engine.max_batch, config.engine.max_length) == (4, 6, 64)
    assert config.serve.port == 1


def test_null_in_file_and_environment_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(write(tmp_path, "model: {drafter: null}")).model.drafter is None
    monkeypatch.setenv("EVOSPEC_MODEL__DRAFTER", "null")
    assert load_config().model.drafter is None


def test_other_variables_of_the_prefix_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSPEC_CACHE", "/somewhere")
    assert load_config() == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine: {draft_lenght: 3}", "unknown key engine.draft_lenght"),
        ("engin: {draft_length: 3}", "unknown key engin"),
        ("engine: {draft_length: many}", "engine.draft_length: Input should be a valid integer"),
        (
            "engine: {draft_length: 99}",
            "engine.draft_length: Input should be less than or equal to 16 (got 99)",
        ),
        ("engine: 3", "engine: Input should be"),
        ("vocabulary: {core: 4000}", "core (4000) may fill at most half"),
        ("registry: {replica_url: redis://reader@localhost}", "replica_url needs url"),
        ("- a\n- b", "must hold sections"),
        ("a: [", "not valid YAML"),
        ("\xff: 1", "unknown key"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml can't be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("EVOSPEC_ENGINE__DRAFT_LENGTH", "99", "less than or equal to 16"),
        ("EVOSPEC_ENGINE__DRAFT_LENGHT", "3", "unknown key engine.draft_lenght"),
        ("EVOSPEC_ENGIN__DRAFT_LENGTH", "3", "there is no section 'engin'"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert f"environment variable {variable}: " in str(caught.value)
    assert expected in str(caught.value)


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"serve\.port on the command line: Input should be less"):
        load_config(options={"serve.port": 70_000})
