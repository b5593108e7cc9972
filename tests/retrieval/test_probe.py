"""The probe for containers: what the exit code says, over TLS too."""

from contract.protection import Protection
from retrieval.listener import SidecarServer
from retrieval.probe import main


def test_the_exit_code_says_whether_the_sidecar_serves(open_sidecar, capsys):
    sidecar = open_sidecar(start=False)
    options = ["--address", sidecar.server.address]
    assert main(options) == 4
    assert "its index is not built" in capsys.readouterr().err
    sidecar.start()
    assert main(options) == 0
    sidecar.stop()
    assert main(options) == 4
    assert "does not answer (UNAVAILABLE)" in capsys.readouterr().err


def test_over_mutual_tls_it_shows_its_certificate(sidecar, certificates, tmp_path, capsys):
    folder = certificates / "good"
    server = SidecarServer(sidecar.service, "127.0.0.1:0", Protection(folder, require_client=True))
    server.announce()
    try:
        assert main(["--address", server.address, "--tls-dir", str(folder)]) == 0
        assert main(["--address", server.address, "--timeout", "2"]) == 4
    finally:
        server.stop(0.0)
    assert main(["--address", server.address, "--tls-dir", str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
