"""Clients that offer another protocol with every request, as Java and curl do, over real sockets."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.fakes import encoded
from tests.app.http.wire import wire

JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

public class Offers {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int request = 0; request < 3; request++) {
            HttpRequest asked = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "image/png")
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1])))
                .build();
            HttpResponse<String> answer = client.send(asked, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
        }
    }
}
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with wire() as serving:
        yield f"http://127.0.0.1:{serving.port}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encoded())
    return path


def test_javas_client_is_answered_with_its_defaults(url: str, image: Path, tmp_path: Path) -> None:
    """It offers HTTP/2 with every request on a new connection; requests in a row get whole answers."""
    if shutil.which("javac") is None:
        pytest.skip("no JDK is installed (Debian's default-jdk-headless)")
    (tmp_path / "Offers.java").write_text(JAVA)
    ran = subprocess.run(
        ["java", tmp_path / "Offers.java", f"{url}/v1/classify", image],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 3, ran.stderr
    assert all(line.startswith('200 HTTP_1_1 {"model":') for line in lines), ran.stdout


def test_curl_that_asks_for_http_2_is_answered(url: str, image: Path) -> None:
    """In HTTP/1.1; with HTTP/2 and no offer before it, the refusal says what to do."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    for how in (["--http2"], ["--http2", "-H", "Transfer-Encoding: chunked"]):
        command = [
            curl,
            "-sS",
            *how,
            "-w",
            "%{http_version} %{http_code}",
            "--data-binary",
            f"@{image}",
            f"{url}/v1/classify",
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "does not support" in ran.stderr:
            pytest.skip("this curl has no HTTP/2")
        assert ran.stdout.startswith('{"model":'), ran
        assert ran.stdout.endswith("1.1 200")
    command = [curl, "-sS", "--http2-prior-knowledge", "--http0.9", url]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0
