"""URLs of the registry's server: what is understood, and what is shown of them."""

from __future__ import annotations

import pytest

from evospec.errors import RegistryError
from services.redis_connection import connect
from services.sentinel import SentinelUrl
from services.urls import redact


def test_a_sentinel_url_is_read() -> None:
    read = SentinelUrl.parse(
        "redis+sentinel://me:p%40ss,word@one:1,[::1]:2,three/my%2Fservice/4?socket_timeout=7"
    )
    assert read.hosts == (("one", 1), ("::1", 2), ("three", 26379))
    assert (read.service, read.tls) == ("my/service", False)
    assert read.options == {"username": "me", "password": "p@ss,word", "db": 4, "socket_timeout": 7.0}
    plain = SentinelUrl.parse("rediss+sentinel://host/service?ssl_ca_certs=/ca.crt&ssl_check_hostname=no")
    assert (plain.hosts, plain.tls) == ((("host", 26379),), True)
    assert plain.options == {"db": 0, "ssl_ca_certs": "/ca.crt", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://secret@host",
        "redis+sentinel://:secret@host/",
        "redis+sentinel:///service",
        "redis+sentinel://:secret@/service",
        "redis+sentinel://one:1,,two:2/service",
        "redis+sentinel://:secret@host:port/service",
        "redis+sentinel://:secret@host:99999/service",
        "redis+sentinel://:secret@host/service/first",
        "redis+sentinel://:secret@host/service/-1",
        "redis+sentinel://:secret@host/service?db=first",
        "redis+sentinel://:secret@host/service?no_such_option=1",
        "redis+sentinel://:sec/ret@host/service",
        "redis+sentinel://[::1/service",
    ],
)
def test_other_sentinel_urls_are_one_clear_line(url: str) -> None:
    with pytest.raises(
        RegistryError, match=r"registry\.url is not a Redis URL .* write redis\+sentinel://"
    ) as caught:
        connect(url, socket_timeout_s=1.0)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sentinel_clients_are_made_as_the_url_says() -> None:
    url = "rediss+sentinel://me:pw@one:1,two:2/service/3?ssl_ca_certs=/ca.crt&sentinel_password=other&socket_timeout=7"
    client = connect(url, socket_timeout_s=1.0)
    pool = client.connection_pool
    assert {
        name: pool.connection_kwargs[name] for name in ("username", "password", "db", "socket_timeout")
    } == {
        "username": "me",
        "password": "pw",
        "db": 3,
        "socket_timeout": 7.0,
    }
    connection = pool.connection_class(**pool.connection_kwargs)
    assert connection.ca_certs == "/ca.crt"
    sentinels = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    assert [each.connection_kwargs["host"] for each in sentinels] == ["one", "two"]
    for each in sentinels:
        assert each.connection_kwargs["password"] == "other"
        assert each.connection_kwargs.get("username") is None
        assert each.make_connection().ca_certs == "/ca.crt"
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "localhost:6379",
        "redis://:secret@host:port",
        "redis://:sec/ret@host",
        "redis://h?decode_responses=yes",
        "redis://:secret@h?no_such_option=1",
        "rediss://:secret@h?ssl_cert_reqs=perhaps",
    ],
)
def test_other_urls_are_one_clear_line(url: str) -> None:
    with pytest.raises(RegistryError, match=r"registry\.replica_url") as caught:
        connect(url, socket_timeout_s=1.0, setting="registry.replica_url")
    assert "sec" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/0", "redis://host:6379/0"),
        ("rediss://:secret@[::1]:6380/1?password=secret", "rediss://[::1]:6380/1"),
        ("unix://user:secret@/run/valkey.sock?db=1", "unix:///run/valkey.sock"),
        (
            "redis+sentinel://u:sec,ret@one:1,[::1]:2,three/service/0?x=secret",
            "redis+sentinel://one:1,[::1]:2,three/service/0",
        ),
        ("redis://:sec/ret@host", "redis://…"),
        ("redis://user:12/secret@host", "redis://…"),
        ("redis://[secret", "redis://…"),
        ("redis://", "redis://…"),
        ("secret", "(a URL without a scheme)"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown
