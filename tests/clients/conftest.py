"""OpenAI's own client and our command line, at the server that all tests share."""

import io
from collections.abc import Callable, Iterator

import openai
import pytest

from em_inf.clients.cli import main
from tests.e2e.serving import Server

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as made:
        yield made


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server
) -> Run:
    """Run `em-inf` within this process, against the server: code, stdout, stderr."""

    def run_it(
        *args: str, url: str | None = server.url, stdin: str = ""
    ) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main([*args, *(["--url", url] if url else [])])
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run_it
