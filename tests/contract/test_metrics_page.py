"""The page of metrics: who may read it, what it answers, and that strangers learn nothing."""

import http.client
import ssl
from contextlib import contextmanager

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, Counter

from contract.errors import ConfigError
from contract.metrics_page import MetricsPage
from contract.protection import Protection
from serving.ports import Ports


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Counter("lab_things", "Things.", registry=registry).inc(3)
    return registry


@contextmanager
def open_page(registry, **options):
    port = Ports.free().metrics
    page = MetricsPage(registry, port, **options)
    try:
        yield port
    finally:
        page.close()


def ask(port, path="/metrics", context=None, method="GET", **headers):
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    else:
        connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=context)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_prometheus_reads_the_metrics_and_nothing_else_is_there(registry):
    passed_on = {"/other": lambda: b"other_things 1\n", "/silent": lambda: None}
    with open_page(registry, passed_on=passed_on) as port:
        status, text = ask(port)
        assert status == 200
        assert text.splitlines()[-1] == "lab_things_total 3.0"  # no _created beside it
        assert ask(port, Accept="application/openmetrics-text")[1].endswith("# EOF\n")
        assert ask(port, "/other?x=1") == (200, "other_things 1\n")
        assert ask(port, "/silent") == (502, "")
        assert ask(port, "/") == (404, "")
        assert ask(port, method="POST") == (405, "")
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            MetricsPage(registry, port)


def test_a_token_of_the_lowest_role_reads_it_and_no_token_is_not_enough(registry, write_tokens):
    path, tokens = write_tokens("metrics", "read")
    with open_page(registry, protection=Protection(tokens=path)) as port:
        assert ask(port) == (401, "")
        assert ask(port, Authorization="Bearer wrong") == (401, "")
        for token in tokens.values():
            assert ask(port, Authorization=f"Bearer {token}")[0] == 200


def test_over_a_network_it_follows_the_rules_of_the_server(registry, certificates, write_tokens):
    path, tokens = write_tokens("metrics")
    for lacking in (Protection(), Protection(certificates / "good"), Protection(tokens=path)):
        with pytest.raises(ConfigError, match="A network can reach"):
            MetricsPage(registry, Ports.free().metrics, host="0.0.0.0", protection=lacking)
    protection = Protection(certificates / "good", require_client=True, tokens=path)
    token = {"Authorization": f"Bearer {tokens['metrics']}"}
    with open_page(registry, host="0.0.0.0", protection=protection) as port:
        trust = ssl.create_default_context(cafile=certificates / "good" / "ca.crt")
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(port, context=trust, **token)  # without a client certificate
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(port, **token)  # plain text
        trust.load_cert_chain(certificates / "good" / "lab.crt", certificates / "good" / "lab.key")
        assert ask(port, context=trust)[0] == 401
        assert ask(port, context=trust, **token)[0] == 200
