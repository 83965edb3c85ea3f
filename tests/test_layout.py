"""The structure of the project: what is installed, and what its pages say of it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("clients", "evaluation", "loadtests", "logits_processors", "server")


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_top_level_is_the_agreed_one() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert top <= {
        ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "Dockerfile", "LICENSE",
        "Makefile", "README.md", "clients", "deploy", "docs", "em_inf", "evaluation",
        "loadtests", "logits_processors", "pyproject.toml", "server", "tests", "training",
    }  # fmt: skip


def test_no_file_of_the_product_is_longer_than_400_lines() -> None:
    results = "loadtests/results"
    sources = [
        name
        for name in tracked()
        if name.startswith(PACKAGES) and not name.startswith(results)
    ]
    lengths = {
        name: len((ROOT / name).read_text().splitlines())
        for name in sources
        if name.endswith((".py", ".js", ".css", ".html", ".jinja"))
    }
    assert len(lengths) > 100
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_folders_import_only_what_the_contracts_allow() -> None:
    # Those of import-linter, in pyproject.toml.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in our wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--wheel-dir", str(folder), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_wheel_puts_one_name_at_the_top_of_site_packages(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"em_inf"}


def test_wheel_holds_every_file_that_is_read_or_imported(wheel: list[str]) -> None:
    wanted = {
        f"em_inf/{name}"
        for name in tracked()
        if name.startswith(PACKAGES)
        and not name.startswith(("loadtests/results", "clients/node"))
        and (name.endswith((".py", ".jinja", ".css", ".js", ".html", ".jsonl"))
             or name.startswith("server/demo_model"))
    }  # fmt: skip
    assert len(wanted) > 100
    assert not wanted - set(wheel)
    assert "em_inf/py.typed" in wheel


def test_client_loads_neither_torch_nor_what_the_server_needs() -> None:
    heavy = ("torch", "vllm", "numba", "triton", "fastapi", "numpy", "rich")
    script = (
        "import sys, em_inf; [getattr(em_inf, name) for name in em_inf.__all__];"
        f"found = [name for name in {heavy} if name in sys.modules];"
        "sys.exit(str(found) if found else 0)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_file_and_folder_that_a_page_names_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert len(pages) > 3
    names = tracked()
    folders = {str(parent) for name in names for parent in Path(name).parents}
    for page in pages:
        text = page.read_text()
        linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        for link in linked:
            assert (page.parent / link).exists(), f"{page.name} links {link}"
        for named in re.findall(r"`((?:[a-z_]+/)+[A-Za-z_.-]*)`", text):
            found = named in names or named.rstrip("/") in folders
            first = named.split("/")[0]
            outside = not any(name.startswith(f"{first}/") for name in names)
            assert found or outside, f"{page.name} names {named}"


def test_page_of_the_request_has_its_eight_steps_and_every_folder() -> None:
    text = (ROOT / "docs" / "request.md").read_text()
    steps = re.findall(r"^(\d)\. .*?`[a-z_]+/[a-z_/]+(?:\.py|/)`", text, re.MULTILINE)
    assert steps == list("12345678")
    for folder in (*PACKAGES, "deploy", "docs", "em_inf", "tests"):
        assert re.search(rf"^\| `{folder}/` \| .{{10,}} \|$", text, re.MULTILINE), folder
