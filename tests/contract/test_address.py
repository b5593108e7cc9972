"""Addresses as people write them, and which ports speak HTTP instead of gRPC."""

import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from contract.address import check_address, speaks_http1, split_addresses
from contract.errors import ConfigError, InputError
from contract.strings import require_strings, require_text

NAMES = {"server": "Triton's gRPC service", "setting": "triton_url (--triton)", "example": "host:8001"}


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8001", "localhost:1", "triton:65535", "my_host-2.lab.example:8001", "[::1]:8001"),
        *("unix:/run/triton.sock", "dns:///triton:8001", "ipv4:127.0.0.1:8001", "[fe80::1%eth0]:8001"),
    ],
)
def test_addresses_of_grpc(url):
    assert check_address(url, **NAMES) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host:8000", r"remove http:// .*HTTP and gRPC use different ports"),
        ("grpc://host:8001", r"remove grpc://"),
        ("host", "has no port"),
        ("[::1]", "has no port"),
        ("host:", "has no port"),
        ("host:99999", "is not from 1 to 65535"),
        ("host:0", "is not from 1 to 65535"),
        ("host:" + "9" * 5000, "is not from 1 to 65535"),
        ("host:0065536", "is not from 1 to 65535"),
        ("host:http", "is not host:port"),
        ("host:-1", "is not host:port"),
        ("host:8001/v2", "is not host:port"),
        ("two hosts:8001", "is not host:port"),
        (":8001", "has no host"),
        ("::1:8001", "brackets"),
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("unix: /run/x", "is not host:port"),
        *((f"{form}:", "names no path or host") for form in ("unix", "unix-abstract", "dns", "ipv4", "ipv6")),
        ("dns:///", "names no path or host"),
        ("[fe80::1%]:8001", "is not host:port"),
        (None, "not None"),
        (8001, "not of type int"),
    ],
)
def test_what_is_no_address_is_refused_in_one_sentence(url, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_address(url, **NAMES)
    said = str(caught.value)
    assert said.startswith(
        "triton_url (--triton) must be host:port of Triton's gRPC service, such as host:8001"
    )
    assert "\n" not in said


@pytest.mark.parametrize(
    ("given", "place"),
    [("a:1,,b:2", 2), ("a:1,b:2,", 3), (",a:1", 1), (["a:1", " "], 2), ("ipv4:1.2.3.4:1,,5.6.7.8:1", 2)],
)
def test_an_empty_one_of_several_addresses_is_counted(given, place):
    with pytest.raises(ConfigError, match=rf"^triton_url .*number {place} is empty"):
        split_addresses(given, NAMES["setting"])
    assert split_addresses("", NAMES["setting"]) == [""]  # refused when it is checked


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(ConfigError, match="user name") as caught:
        check_address("http://someone:secret@host:8001", **NAMES)
    assert "secret" not in str(caught.value)


def test_a_port_of_http_is_told_from_one_of_grpc():
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        assert speaks_http1(f"127.0.0.1:{web.server_port}")
        web.shutdown()
    assert not speaks_http1(f"127.0.0.1:{web.server_port}")  # nobody there
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert not speaks_http1(f"127.0.0.1:{port}")
    server.stop(0).wait()
    assert not speaks_http1("unix:/run/nobody.sock")
    assert not speaks_http1("no-such-host.invalid:80")


@pytest.mark.parametrize("values", [["a", "b"], ("a", "b"), iter("ab"), {"a": 1, "b": 2}])
def test_series_of_strings(values):
    assert require_strings(values, "ids") == ("a", "b")


def test_surrogates_are_no_text():
    assert require_text("Größe", "The id") == "Größe"
    with pytest.raises(InputError, match="The id holds characters that are not valid text"):
        require_text("PATIENT\udcff", "The id")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("PATIENT", "list of strings, not one string. Put brackets around it"),
        (b"PATIENT", "not one string"),
        (12, "not of type int"),
        (None, "not of type NoneType"),
        (["PATIENT", 12], "Entry 2 of ids must be text, not of type int"),
        ([float("nan")], "not of type float"),
    ],
)
def test_what_is_no_series_of_strings_is_refused_without_repeating_it(values, words):
    with pytest.raises(InputError, match=words) as caught:
        require_strings(values, "ids")
    assert "PATIENT" not in str(caught.value)
