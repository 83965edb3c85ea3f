"""OpenAI's own clients, pointed at the server that all tests share."""

from collections.abc import Iterator

import openai
import pytest

from tests.e2e.serving import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as made:
        yield made
