"""Who may ask: holders of keys, or without keys whoever asks by a loopback name."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.requests import Request

from monitoring.settings import THIS_MACHINE
from service.clients import Clients
from service.errors import RequestError
from service.keys import add_key
from service.settings import ServiceSettings


def asking(address: str | None = "127.0.0.1", **headers: str) -> Request:
    return Request(
        {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "headers": [
                (name.encode(), value.encode("latin-1")) for name, value in headers.items()
            ],
            "client": None if address is None else (address, 50_000),
        }
    )


@pytest.fixture
def by_name(tmp_path):
    return Clients(ServiceSettings(home=tmp_path / "home"))


@pytest.fixture
def by_address(tmp_path):
    return Clients(ServiceSettings(home=tmp_path / "home", allow_without_keys=True))


@pytest.fixture
def keys(tmp_path):
    """Secrets by name, and the clients that know them."""
    path = tmp_path / "keys.json"
    secrets = {
        "anna": add_key(path, "anna", ["predict", "feedback"]),
        "prometheus": add_key(path, "prometheus", ["metrics"]),
    }
    return secrets, Clients(ServiceSettings(home=tmp_path / "home", api_keys_file=path))


# Without keys


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:3000",
        "127.0.0.1",
        "127.0.0.1:3000",
        "[::1]",
        "[::1]:80",
        "LOCALHOST",
    ],
)
def test_loopback_names_are_served(host, by_name):
    assert by_name.admit(asking(host=host), "predict")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "localhost:80@evil.example:1",
        "localhost:evil1",
        "192.168.0.7:3000",
        "[::2]:80",
        ":3000",
        "",
    ],
)
def test_other_host_names_are_forbidden(host, by_name):
    with pytest.raises(RequestError) as refusal:
        by_name.admit(asking(host=host), "predict")
    assert (refusal.value.code, refusal.value.status) == ("forbidden", 403)


def test_no_host_header_is_forbidden(by_name):
    with pytest.raises(RequestError, match="Host header names ''"):
        by_name.admit(asking(), "predict")


def test_whoever_asks_is_served_where_that_is_allowed(tmp_path):
    clients = Clients(ServiceSettings(home=tmp_path, allow_without_keys=True))
    assert clients.admit(asking("10.0.0.9", host="plumbline.example"), "predict")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_whoever_asks_where_this_machine_alone_is_served_is_one_client(address, by_name):
    assert by_name.admit(asking(address, host="localhost"), "predict") == THIS_MACHINE


PROXIES = [
    *("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP", "Via"),
    *("X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Envoy-External-Address"),
]


@pytest.mark.parametrize("header", PROXIES)
def test_what_a_proxy_passed_on_is_not_taken_for_this_machine(header, by_name):
    request = asking(host="localhost", **{header.lower(): "127.0.0.1"})
    assert by_name.admit(request, "predict") not in (THIS_MACHINE, "")


def test_nor_is_it_where_its_header_was_told_to_go(by_name):
    request = asking(host="localhost", connection="keep-alive, X-Forwarded-For")
    assert by_name.admit(request, "predict") != THIS_MACHINE
    request = asking(host="localhost", connection="keep-alive", accept="*/*", te="trailers")
    assert by_name.admit(request, "predict") == THIS_MACHINE


def test_what_is_passed_on_is_of_one_client_whatever_it_says(by_name):
    names = {
        by_name.admit(asking(f"127.0.0.{its}", host="localhost", via=f"{its}"), "predict")
        for its in range(1, 6)
    }
    assert len(names) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.9", None])
def test_where_whoever_asks_is_served_nobody_is_taken_for_this_machine(address, by_address):
    """All of them may come through a proxy on it."""
    assert by_address.admit(asking(address, host="localhost"), "feedback") != THIS_MACHINE


def test_a_socket_without_an_address_is_not_taken_for_this_machine(by_name):
    assert by_name.admit(asking(None, host="localhost"), "predict") != THIS_MACHINE


def test_an_address_is_named_by_a_hash_that_is_its_own(by_address):
    here, again, there = (
        by_address.admit(asking(address, host="localhost"), "predict")
        for address in ("127.0.0.1", "127.0.0.1", "127.0.0.2")
    )
    assert here == again != there
    assert "127" not in here
    assert len(here) == 16


def test_a_socket_without_an_address_is_a_client_too(by_name):
    assert by_name.admit(asking(None, host="localhost"), "predict")


def test_the_same_address_has_the_same_name_after_a_restart_and_another_elsewhere(tmp_path):
    def name(home):
        clients = Clients(ServiceSettings(home=tmp_path / home, allow_without_keys=True))
        return clients.admit(asking(host="localhost"), "predict")

    assert name("one") == name("one") != name("two")


def test_the_secret_is_made_once_and_only_its_owner_reads_it(tmp_path):
    Clients(ServiceSettings(home=tmp_path))
    (path,) = tmp_path.iterdir()
    secret = path.read_bytes()
    Clients(ServiceSettings(home=tmp_path))
    assert path.read_bytes() == secret
    assert len(secret) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_workers_that_start_at_once_agree_on_one_secret(tmp_path):
    """None of them may read the file while another has made but not yet filled it."""
    for attempt in range(20):
        home = tmp_path / str(attempt)
        together = threading.Barrier(6)

        def name(_: int, home=home, together=together) -> str:
            together.wait()
            clients = Clients(ServiceSettings(home=home, allow_without_keys=True))
            return clients.admit(asking(host="localhost"), "predict")

        with ThreadPoolExecutor(6) as threads:
            assert len(set(threads.map(name, range(6)))) == 1


# With keys


def test_a_key_opens_what_it_has_the_scope_for_and_names_its_client(keys):
    secrets, clients = keys
    request = asking(
        "10.0.0.9", host="plumbline.example", authorization=f"Bearer {secrets['anna']}"
    )
    assert clients.admit(request, "predict") == "anna"
    assert clients.admit(request, "feedback") == "anna"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(scheme, keys):
    secrets, clients = keys
    assert clients.admit(asking(authorization=f"{scheme} {secrets['anna']}"), "predict") == "anna"


def test_a_key_without_the_scope_is_forbidden(keys):
    secrets, clients = keys
    with pytest.raises(RequestError, match="'prometheus' lacks the scope 'predict'") as refusal:
        clients.admit(asking(authorization=f"Bearer {secrets['prometheus']}"), "predict")
    assert refusal.value.status == 403


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {}", "{}", "Bearer{}", "Bearer \xff"]
)
def test_without_a_known_key_nobody_is_served_not_even_loopback(header, keys):
    secrets, clients = keys
    request = asking(host="localhost", authorization=header.format(secrets["anna"]))
    with pytest.raises(RequestError) as refusal:
        clients.admit(request, "predict")
    assert (refusal.value.code, refusal.value.status) == ("unauthorized", 401)
    assert refusal.value.headers == {"WWW-Authenticate": "Bearer"}
    assert secrets["anna"] not in str(refusal.value)


def test_without_keys_only_this_machine_is_served(tmp_path):
    clients = Clients(ServiceSettings(home=tmp_path))
    with pytest.raises(RequestError, match="only this machine"):
        clients.admit(asking("192.168.1.9", host="localhost"), "predict")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost.evil.example", "null"]
)
def test_a_page_of_another_origin_is_forbidden(tmp_path, origin):
    clients = Clients(ServiceSettings(home=tmp_path))
    with pytest.raises(RequestError, match="Origin"):
        clients.admit(asking("127.0.0.1", host="localhost", origin=origin), "predict")
    assert clients.admit(
        asking("127.0.0.1", host="localhost", origin="http://localhost:3000"), "predict"
    )
