"""Where a result was measured: hardware, versions, source commit; nothing that names a host or a folder."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch
import transformers

from evospec.bench.results import Machine

_CPU_INFO = Path("/proc/cpuinfo")
_GIT_TIMEOUT_S = 10.0
UNKNOWN = "unknown"


def describe_machine() -> Machine:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        gpu=torch.cuda.get_device_name(0) if gpus else None,
        gpus=gpus,
        gpu_memory_gb=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if gpus else 0.0,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def git_commit() -> str:
    """Commit of the checkout this program runs from, `-dirty` when sources differ from it.

    `unknown` for an installed package, or without git.
    """
    folder = Path(__file__).resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return UNKNOWN
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return UNKNOWN
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or UNKNOWN


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
