"""Makes all passwords and keys of an installation: `python infra/make_secrets.py --out FOLDER`.

The folder then holds what docs/kubernetes.md makes Secrets of, and what infra/containers/compose.yaml reads.
Nothing is overwritten. Keep the folder out of version control.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path

from services.access import digest_of, new_key

USERS = Path(__file__).resolve().parent / "redis" / "users.acl"
REGISTRY = "registry:6379"  # as the compose file and the manifests call it


def _password() -> str:
    return secrets.token_hex(32)


@dataclass(frozen=True, slots=True)
class Passwords:
    """One for each user, every one of 256 random bits."""

    replica: str = field(default_factory=_password)
    aligner: str = field(default_factory=_password)
    operator: str = field(default_factory=_password)
    gcs_store: str = field(default_factory=_password)
    qdrant: str = field(default_factory=_password)
    grafana: str = field(default_factory=_password)
    signing: str = field(default_factory=_password)
    api: str = field(default_factory=new_key)
    admin: str = field(default_factory=new_key)


def files(passwords: Passwords) -> dict[str, str]:
    """Content of each file, by its name."""
    api_keys = [{"name": "first", "sha256": digest_of(passwords.api)}]
    admin_keys = [{"name": "admin", "sha256": digest_of(passwords.admin)}]
    return {
        "users.acl": _registry_users(passwords),
        "evospec.env": _environment(
            {
                "EVOSPEC_REGISTRY__URL": f"redis://aligner:{passwords.aligner}@{REGISTRY}/0",
                "EVOSPEC_REGISTRY__REPLICA_URL": f"redis://replica:{passwords.replica}@{REGISTRY}/0",
                "EVOSPEC_REGISTRY__SIGNING_KEY": passwords.signing,
                "EVOSPEC_SEMANTIC__API_KEY": passwords.qdrant,
                "EVOSPEC_ACCESS__KEYS": json.dumps(api_keys),
                "EVOSPEC_ACCESS__ADMIN_KEYS": json.dumps(admin_keys),
            }
        ),
        "operator.env": _environment(
            {"EVOSPEC_REGISTRY__URL": f"redis://operator:{passwords.operator}@{REGISTRY}/0"}
        ),
        "qdrant.env": _environment({"QDRANT__SERVICE__API_KEY": passwords.qdrant}),
        "grafana.env": _environment({"GF_SECURITY_ADMIN_PASSWORD": passwords.grafana}),
        "gcs-store/username": "ray",
        "gcs-store/password": passwords.gcs_store,
        "gcs-store/users.acl": _head_user(passwords.gcs_store),
        "api-key": passwords.api,
        "admin-key": passwords.admin,
    }


def write(folder: Path) -> None:
    """Writes all files, each for its owner alone.

    Raises:
        FileExistsError: there is something already.
    """
    folder.mkdir(mode=0o700, parents=True)
    for name, content in files(Passwords()).items():
        # Containers read the users as another user than the one who makes this.
        mode = 0o644 if name == "users.acl" else 0o600
        (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(content)


def _registry_users(passwords: Passwords) -> str:
    text = USERS.read_text(encoding="utf-8")
    users = {"REPLICA": passwords.replica, "ALIGNER": passwords.aligner, "OPERATOR": passwords.operator}
    for user, password in users.items():
        text = text.replace(f"{user}_SHA256", digest_of(password))
    return text


def _head_user(password: str) -> str:
    """The server is for Ray's head alone, which may do everything there."""
    return f"user default off resetpass\nuser ray on resetpass #{digest_of(password)} ~* &* +@all\n"


def _environment(values: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes all passwords and keys of an installation.")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="it must not be there yet")
    folder = parser.parse_args().out
    try:
        write(folder)
    except FileExistsError:
        print(f"error: {folder} is there already: keys are not made twice", file=sys.stderr)
        return 2
    print(f"{folder}: the key to the API is in {folder / 'api-key'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
