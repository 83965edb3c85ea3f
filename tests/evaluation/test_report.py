import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from em_inf.evaluation.records import Problem, run_from_json
from em_inf.evaluation.report import write
from em_inf.evaluation.report.examples import examples
from em_inf.evaluation.summary import summarize
from tests.evaluation.made_up import answer, drawn_run, run_of, traced
from tests.playground.browser import HOW_TO_RUN, chromium, open_page, start_browser


@pytest.fixture(scope="module")
def run():
    made = drawn_run(questions=60)
    traces = tuple(traced(made, of) for example in examples(made) for of in example.shown)
    return replace(made, traces=traces)


@pytest.fixture(scope="module")
def report(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    written = write(run, folder)
    assert [path.name for path in written] == ["report.html", "report.md", "report.json"]
    return folder


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.urls: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                self.urls.append(value)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_page_needs_nothing_from_elsewhere_and_runs_no_script(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = _Page(text)
    assert not page.open
    assert "script" not in page.tags
    assert page.urls
    assert all(url.startswith("#") for url in page.urls)
    assert "@import" not in text
    assert all(url.startswith("#") for url in re.findall(r"url\((.*?)\)", text))


def test_ids_of_several_pictures_do_not_meet(report: Path) -> None:
    page = _Page((report / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {url.removeprefix("#") for url in page.urls} <= set(page.ids)


def test_headlines_come_before_every_figure(report: Path, run) -> None:
    for name in ("report.html", "report.md"):
        text = (report / name).read_text()
        assert 0 < text.index("EM-INF does not beat greedy here") < text.index("Accuracy")


def test_same_run_gives_the_same_bytes(report: Path, run, tmp_path: Path) -> None:
    for again in write(run, tmp_path):
        assert again.read_bytes() == (report / again.name).read_bytes()


def test_json_holds_everything_to_compute_the_figures_again(report: Path, run) -> None:
    value = json.loads((report / "report.json").read_text())
    read = run_from_json(value["run"])
    assert read == run
    assert summarize(read) == summarize(run)
    assert value["summary"]["headlines"] == list(summarize(run).headlines)


def test_what_was_asked_is_all_there(report: Path, run) -> None:
    for name in ("report.html", "report.md"):
        text = (report / name).read_text().replace("&#34;", '"').replace("\\", "")
        for part in (run.command, run.model, run.url, "version 0.1.0", "max_tokens"):
            assert part in text
        for record in run.decoders:
            assert json.dumps(dict(record.request)) in text


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    bad = "</pre><script>alert(1)</script> | ``` \x1b[31m **b**"
    answers = [answer("greedy", "q1", True), answer(bad, "q1", False)]
    made = run_of([replace(of, text=bad) for of in answers], task=bad, model=bad)
    made = replace(
        made, problems=(Problem("q1", ({"role": "user", "content": bad},), bad),)
    )
    write(made, tmp_path)
    page = _Page((tmp_path / "report.html").read_text())
    assert not page.open
    assert "script" not in page.tags
    text = (tmp_path / "report.md").read_text()
    assert f"````\n{bad}\n````" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(not re.search(r"(?<!\\)<script", row) for row in rows)


def test_run_of_the_baseline_alone_is_reported(tmp_path: Path) -> None:
    write(drawn_run({"greedy": 0.5}, questions=5), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "On no question is a decoder right where greedy is not" in text


def test_run_that_was_stopped_before_its_first_answer_is_reported(tmp_path: Path) -> None:
    made = drawn_run(questions=5)
    write(replace(made, answers=()), tmp_path)
    assert "Unfinished: 25 of 25" in (tmp_path / "report.html").read_text()


class TestExamples:
    def test_each_shows_the_baseline_and_a_decoder_that_differs(self, run) -> None:
        found = examples(run)
        assert len(found) == 10
        for example in found:
            one, two = example.shown
            assert one.decoder == run.baseline
            assert (one.verdict.grade == "right") != (two.verdict.grade == "right")
            assert len(example.all) == len(run.decoders)

    def test_seed_alone_draws_them(self, run) -> None:
        def ids(of) -> list[str]:
            return [example.problem.id for example in examples(of)]

        assert ids(replace(run, answers=run.answers[::-1])) == ids(run)
        assert ids(replace(run, seed=run.seed + 1)) != ids(run)

    def test_tokens_are_shaded_with_their_nats_in_words(self, report: Path) -> None:
        text = (report / "report.html").read_text()
        assert '<span class="t2" title="0.60 nats, after 0.50">answer </span>' in text
        assert "Least certain: " in text


@pytest.mark.skipif(chromium() is None, reason=HOW_TO_RUN)
def test_page_is_readable_on_a_phone_in_the_dark_and_by_everyone(report: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    url = (report / "report.html").as_uri()
    with start_browser() as browser:
        for width, scheme in ((1280, "light"), (360, "dark")):
            settings = {"viewport": {"width": width, "height": 800}}
            with open_page(browser, color_scheme=scheme, **settings) as page:
                page.goto(url)
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width
                assert not Axe().run(page).response["violations"]
