"""Fixtures of the client's tests, which the commands here need too."""

from tests.clients.conftest import client, run

__all__ = ["client", "run"]
