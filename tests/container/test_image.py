"""The image's CPU target, built and run: `make container-test`."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.container import images

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EM_INF_CONTAINER"),
        reason="builds an image, as root, for minutes: make container-test",
    ),
    pytest.mark.timeout(3600),
]
TOKENS = 600


@pytest.fixture(scope="module")
def container() -> Iterator[images.Container]:
    if os.environ["EM_INF_CONTAINER"] != "built":
        images.build()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        "EM_INF_URL": f"http://127.0.0.1:{port}",
        "VLLM_API_KEY": "secret",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with images.run("--port", str(port), environ=environ) as running:
        running.wait_until_well()
        yield running


def ask(container: images.Container, **fields: object) -> Request:
    body = {"model": "em-inf-demo", "prompt": "Tom has 3", "em_inf": True, **fields}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
    url = container.environ["EM_INF_URL"] + "/v1/completions"
    return Request(url, json.dumps(body).encode(), headers)


def test_answers_a_request_with_its_statistics(container: images.Container) -> None:
    with urlopen(ask(container, max_tokens=20)) as answer:
        choice = json.load(answer)["em_inf"]["choices"][0]
    assert choice["tokens"] > 0
    assert choice["mean_entropy_before"] > 0


def test_server_is_process_one_of_an_arbitrary_user(container: images.Container) -> None:
    status = Path(f"/proc/{container.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(images.UID)] * 4
    assert fields["Gid"].split() == ["0"] * 4
    assert fields["NSpid"].split()[-1] == "1"
    assert b"em-inf" in Path(f"/proc/{container.pid}/cmdline").read_bytes()


def test_only_cache_and_tmp_can_be_written(container: images.Container) -> None:
    for path in ("/opt/em-inf/x", "/x", "/etc/x", "/root/x"):
        assert container.execute("touch", path).returncode != 0, path
    for path in ("/cache/x", "/tmp/x"):
        assert container.execute("touch", path).returncode == 0, path


def test_health_check_is_content(container: images.Container) -> None:
    for args in ((), ("--ready",)):
        found = container.health(*args)
        assert found.returncode == 0
        assert found.stdout.startswith("well: em-inf 0.1.0 on cpu")


def test_health_check_fails_with_a_reason(container: images.Container) -> None:
    wrong = {**container.environ, "VLLM_API_KEY": "wrong"}
    found = images.Container(
        container.root, container.config, container.process, container.log, wrong
    ).health()
    assert found.returncode == 1
    assert "not well: GET /v1/em_inf: status 401" in found.stderr
    nobody = {**container.environ, "EM_INF_URL": "http://127.0.0.1:9"}
    found = images.Container(
        container.root, container.config, container.process, container.log, nobody
    ).health()
    assert found.returncode == 1
    assert "Connection refused" in found.stderr


def test_charts_vllm_serve_is_our_server(container: images.Container) -> None:
    found = container.execute("vllm", "serve", "--em-inf-default", "nonsense")
    assert "em-inf serve: --em-inf-default" in found.stderr


def test_stops_on_sigterm_after_its_streams_have_ended(
    container: images.Container,
) -> None:
    request = ask(
        container, max_tokens=TOKENS, ignore_eos=True, stream=True, temperature=1.0
    )
    with ThreadPoolExecutor(1) as pool, urlopen(request) as answer:
        lines = [answer.readline()]
        os.kill(container.pid, signal.SIGTERM)
        lines += pool.submit(answer.readlines).result()
    chunks = [line[6:] for line in lines if line.startswith(b"data: ")]
    assert chunks[-1].strip() == b"[DONE]"
    assert json.loads(chunks[-2])["em_inf"]["choices"][0]["tokens"] == TOKENS
    assert container.process.wait(120) == 0
