"""Keys, TLS and the operations port, in real processes."""

import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.app.security.test_tls import self_signed
from tests.system.photographs import SHIPPED
from tests.system.server import CLIENT, ENVIRONMENT, TRIMVIT, Server, is_ready, running_server, wait_until

COFFEE = (SHIPPED / "coffee.jpg").read_bytes()
ALICE, BOB, CAROL = "alices-secret-key-1", "bobs-secret-key-22", "carols-secret-key-3"


def test_keys_are_asked_for_rotated_and_never_shown(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of a file and of the environment; a changed file counts in every process within seconds, without
    a restart; no log line and no worker's environment holds a key."""
    keys = tmp_path / "keys"
    hashed = hashlib.sha256(ALICE.encode()).hexdigest()
    keys.write_text(f"alice:sha256:{hashed}\n")
    monkeypatch.setenv("TRIMVIT_API_KEYS", f"bob:{BOB}")
    flags = ("--api-keys-file", str(keys), "--http-workers", "2", "--log-level", "debug")
    with running_server(tmp_path, "--model", str(calibrated), *flags) as server:

        def status(key: str | None) -> int:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            return CLIENT.post(
                f"{server.url}/v1/classify", content=COFFEE, headers=headers, timeout=60
            ).status_code

        assert [status(key) for key in (ALICE, BOB, CAROL, None)] == [200, 200, 401, 401]
        assert server.metric("trimvit_refusals_total", reason="unauthorized") == 2, "/metrics is open"
        keys.write_text(f"carol:{CAROL}\n")
        # Each request meets one of the two processes; a run of them meets both.
        wait_until(lambda: {status(CAROL) for _ in range(8)} == {200}, "the new key to be valid")
        wait_until(lambda: {status(ALICE) for _ in range(8)} == {401}, "the old key to be refused")
        assert status(BOB) == 200
        assert server.metric("trimvit_restarts_total", process="http-0") == 0
        for title in ("trimvit: worker", "trimvit: dispatcher"):
            (process,) = server.processes(title)
            assert "TRIMVIT_API_KEYS" not in process.environ()
        log = server.log.read_text()
    assert "loaded 1 API keys" in log, "the log is the one to look at"
    for secret in (ALICE, BOB, CAROL, hashed):
        assert secret not in log


def test_tls_and_operations_on_a_port_of_their_own(calibrated: Path, tmp_path: Path) -> None:
    """HTTPS by certificate and key; plain HTTP is refused in words there. Probes and metrics have their own
    listener, and the main port serves no metrics."""
    settings = self_signed(tmp_path)
    assert settings.tls_certificate is not None
    log = tmp_path / "server.log"
    flags = ["--tls-certificate", str(settings.tls_certificate), "--tls-key", str(settings.tls_key)]
    flags += ["--model", str(calibrated)]
    with log.open("wb") as sink:
        supervisor = subprocess.Popen(
            [TRIMVIT, "serve", "--port", "0", "--operations-port", "0", *flags],
            stderr=sink,
            env={**ENVIRONMENT, **os.environ},
        )
    try:
        wait_until(lambda: "operations on" in log.read_text(), "both listeners")
        main = re.search(r"listening on (https://[^\s\"]+)", log.read_text())
        beside = re.search(r"operations on (http://[^\s\"]+)", log.read_text())
        assert main is not None
        assert beside is not None
        url, operations = main[1], beside[1]

        wait_until(lambda: is_ready(operations), f"the server to be ready; its log:\n{log.read_text()}")
        trusting = ssl.create_default_context(cafile=settings.tls_certificate)
        with httpx.Client(verify=trusting, timeout=60) as client:
            assert client.post(f"{url}/v1/classify", content=COFFEE).status_code == 200
            assert client.get(f"{url}/readyz").status_code == 200
            assert client.get(f"{url}/metrics").status_code == 404
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/livez")
        plain = httpx.get(url.replace("https://", "http://") + "/livez")
        assert plain.status_code == 400
        assert "use https://" in plain.json()["detail"]
        host, port = url.removeprefix("https://").split(":")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = ssl.TLSVersion.TLSv1_1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection((host, int(port))) as given, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(given)

        page = httpx.get(f"{operations}/metrics")
        assert 'trimvit_images_total{outcome="answered"} 1.0' in page.text
        assert httpx.get(f"{operations}/livez").status_code == 200
        for path in ("/v1/classify", "/v1/models", "/docs", "/openapi.json"):
            assert httpx.get(f"{operations}{path}").status_code == 404, path
        supervisor.terminate()
        assert supervisor.wait(60) == 0
    finally:
        if supervisor.poll() is None:
            supervisor.kill()
            supervisor.wait()
        sys.stdout.write(log.read_text())  # shown with a failing test


def test_the_docs_page_runs_under_its_policy(server: Server) -> None:
    """In a browser, Swagger UI lists the routes, and nothing is blocked or asked of another host."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian package chromium)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{server.url}/docs", timeout=60_000)
        page.locator("[data-path='/v1/classify']").first.wait_for(timeout=60_000)
        browser.close()
    assert said == []
    assert len(asked) > 3
    assert all(url.startswith((server.url, "data:", "blob:")) for url in asked)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--api-keys-file", "/nowhere/keys"], "the API keys in /nowhere/keys cannot be read: No such file"),
        (["--tls-certificate", "/nowhere/c.pem"], "--tls-certificate and --tls-key must be given together"),
        (
            ["--tls-certificate", "/nowhere/c.pem", "--tls-key", "/nowhere/k.pem"],
            "/nowhere/c.pem cannot be read: No such file",
        ),
    ],
)
def test_keys_and_certificates_that_cannot_be_read_are_told_at_once(flags: list[str], words: str) -> None:
    """Nothing is started, and nothing is served without what was asked for."""
    ended = subprocess.run(
        [TRIMVIT, "serve", "--port", "0", *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode in (1, 2)
    assert words in ended.stderr
    assert "listening" not in ended.stderr
