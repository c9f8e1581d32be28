"""Certificates for tests, made with the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY = "-newkey rsa:2048 -nodes"


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority with its files in `folder`; its certificates are for 127.0.0.1."""

    folder: Path
    openssl: str

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Skips where there is no openssl."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl is not installed")
        folder.mkdir(parents=True)
        made = cls(folder, openssl)
        made._run(f"req -x509 {KEY} -days 2 -subj /CN=authority -keyout ca.key -out ca.crt")
        return made

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key."""
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        self._run(f"req {KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signing = "-days 2 -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names"
        self._run(f"x509 -req -in {name}.csr {signing} -out {name}.crt")
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _run(self, arguments: str) -> None:
        command = [self.openssl, *arguments.split()]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
