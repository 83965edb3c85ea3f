"""What is served, under which headers, and what is not."""

import json
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from em_inf.server import playground
from em_inf.server.operator_settings import SERVER_SETTINGS_VARIABLE, server_settings
from em_inf.server.plugin import EMInfPlugin

ASSETS = sorted(
    path.name
    for path in playground.FOLDER.iterdir()
    if path.suffix in playground.ASSET_SUFFIXES
)


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()
    EMInfPlugin().attach_router(made)
    return made


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as made:
        yield made


def test_page_is_html_under_a_strict_policy(client: TestClient) -> None:
    answer = client.get("/playground")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ASSETS)
def test_asset_is_served_with_its_type_and_the_same_headers(
    client: TestClient, name: str
) -> None:
    answer = client.get(f"/playground/{name}")
    assert answer.status_code == 200
    assert answer.content == (playground.FOLDER / name).read_bytes()
    kind = {"js": "javascript", "css": "css", "svg": "svg"}[name.rpartition(".")[2]]
    assert kind in answer.headers["content-type"]
    for header, value in playground.HEADERS.items():
        assert answer.headers[header] == value


@pytest.mark.parametrize("path", ["/playground", "/playground/app.js"])
def test_unchanged_file_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert client.head(path).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "../plugin.py",
        "..%2fplugin.py",
        "%2e%2e%2fplugin.py",
        "..%2f..%2fREADME.md",
        "%2fetc%2fpasswd",
        "..%5capp.js",
        "__init__.py",
        "index.html",
        "screenshot.png",
        "no-such-file.js",
        "x/app.js",
        "%00.js",
    ],
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/playground/{name}").status_code == 404


def test_page_stays_out_of_the_openapi_document(app: FastAPI) -> None:
    assert not [path for path in app.openapi()["paths"] if "playground" in path]


def test_everything_that_the_page_names_is_beside_it_under_a_root_path(
    app: FastAPI,
) -> None:
    outer = FastAPI()
    outer.mount("/deep/down", app)
    with TestClient(outer) as client:
        page = client.get("/deep/down/playground")
        named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert len(named) == 3
        for name in named:
            address = urljoin(str(page.url), name)
            assert "/deep/down/playground/" in address
            assert client.get(address).status_code == 200


def test_page_has_neither_inline_script_nor_style() -> None:
    page = (playground.FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page)
    assert all("></script>" in line for line in page.splitlines() if "<script" in line)


def test_operator_can_leave_the_page_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_SETTINGS_VARIABLE, json.dumps({"playground": False}))
    server_settings.cache_clear()
    app = FastAPI()
    EMInfPlugin().attach_router(app)
    server_settings.cache_clear()
    with TestClient(app) as client:
        assert client.get("/playground").status_code == 404
        assert client.get("/playground/app.js").status_code == 404
