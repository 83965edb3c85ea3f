"""A wrong setting names itself, whoever finds it."""

import asyncio
from typing import Any

import openai
import pytest

from em_inf import EMInf, SettingRefusedError, SettingsError, setting_errors
from tests.clients.asking import CHAT, COMPLETION, RESPONSE, async_client
from tests.e2e.serving import Server

REFUSED = EMInf(n_grad_steps=65)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
def test_setting_that_this_server_refuses_is_named(
    client: openai.OpenAI, route: str, stream: bool
) -> None:
    create: Any = {
        "chat": client.chat.completions.create,
        "completions": client.completions.create,
        "responses": client.responses.create,
    }[route]
    body = {"chat": CHAT, "completions": COMPLETION, "responses": RESPONSE}[route]
    with pytest.raises(SettingRefusedError) as caught, setting_errors():
        create(**body, stream=stream, extra_body=REFUSED)
    error = caught.value
    assert error.field == "em_inf.n_grad_steps"
    assert error.reason == (
        "65 is not allowed; it must be an integer of at least 0 and at most 64"
    )
    assert str(error) == f"{error.field}: {error.reason}"


def test_it_is_the_sdks_error_and_ours(client: openai.OpenAI) -> None:
    with pytest.raises(SettingsError) as caught, setting_errors():
        client.chat.completions.create(**CHAT, extra_body=EMInf(preset="nope"))
    error = caught.value
    assert isinstance(error, openai.BadRequestError)
    assert error.status_code == 400
    assert error.param == "em_inf.preset"
    assert error.response.status_code == 400
    assert "'balanced'" in error.reason


def test_asynchronous_client(server: Server) -> None:
    @setting_errors()
    async def never_awaited() -> None:
        """Only here to show that decorating keeps a function a function."""

    async def ask() -> None:
        async with async_client(server) as client:
            with setting_errors():
                await client.chat.completions.create(**CHAT, extra_body=REFUSED)

    with pytest.raises(SettingRefusedError, match="n_grad_steps"):
        asyncio.run(ask())
    assert callable(never_awaited)


def test_other_errors_pass_unchanged(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught, setting_errors():
        client.chat.completions.create(**{**CHAT, "temperature": -1})
    assert not isinstance(caught.value, SettingsError)
    with pytest.raises(openai.NotFoundError), setting_errors():
        client.chat.completions.create(**{**CHAT, "model": "nope"}, extra_body=EMInf())
