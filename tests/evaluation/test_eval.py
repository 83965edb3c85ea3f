"""`em-inf eval` against the real server: every decoder, and a run that is killed."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from em_inf.evaluation.decoder_texts import DEFAULT
from em_inf.evaluation.journal import Journal
from em_inf.evaluation.plan import JOURNAL
from em_inf.evaluation.records import Call
from em_inf.evaluation.runner import load
from tests.clients.asking import metric
from tests.clients.conftest import Run
from tests.clients.terminals import COMMAND, environ, terminal
from tests.e2e.serving import Server

NOWHERE = "http://127.0.0.1:9"
SECONDS = 300


def finished(server: Server) -> float:
    """Requests that the server answered to their end."""
    name = "vllm:request_success_total"
    return sum(metric(server, name, finished_reason=end) for end in ("stop", "length"))


def calls(folder: Path) -> dict[Any, Call]:
    return Journal.read(folder / JOURNAL).calls


@pytest.fixture(scope="module")
def everything(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The default set on a few problems: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("eval")
    said = subprocess.run(
        [
            *COMMAND, "eval", "arithmetic", "--limit", "4", "--calibration", "4",
            "--output", str(folder), "--url", server.url, "--json",
        ],
        capture_output=True, text=True, env=environ(), timeout=600,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return folder, json.loads(said.stdout)


def test_every_decoder_of_the_default_set_answers_everything(
    everything: tuple[Path, dict[str, Any]],
) -> None:
    folder, printed = everything
    run = load(folder)
    assert [record.name for record in run.decoders] == list(DEFAULT)
    for record in run.decoders:
        answers = [answer for answer in run.answers if answer.decoder == record.name]
        assert [answer.problem for answer in answers] == [p.id for p in run.problems]
        for answer in answers:
            assert len(answer.calls) == record.calls_per_answer
            assert len({call.seed for call in answer.calls}) == record.calls_per_answer
            assert {call.entropy_before is None for call in answer.calls} == {False}
        touched = sum(call.tokens_minimized for a in answers for call in a.calls)
        sharpened = record.request["em_inf"] is not None
        assert (touched > 0) == sharpened, record.name
        assert record.seconds > 0
    assert [line["record"]["name"] for line in printed["summary"]["decoders"]] == list(
        DEFAULT
    )
    assert all(Path(path).stat().st_size for path in printed["written"])


def test_matched_temperature_has_the_entropy_that_em_inf_leaves(
    everything: tuple[Path, dict[str, Any]],
) -> None:
    run = load(everything[0])
    (record,) = [record for record in run.decoders if record.kind == "matched"]
    assert 0.05 < record.request["temperature"] < 1
    (note,) = [note for note in record.notes if "temperature" in note]
    numbers = re.findall(
        r"of ([\d.]+) nats .* wanted were ([\d.]+); .* is ([\de.-]+);", note
    )
    achieved, wanted, error = map(float, numbers[0])
    assert abs(achieved - wanted) <= max(0.02 * wanted, error) + 1e-4
    looks = Journal.read(everything[0] / JOURNAL).looks
    assert len({what for _, what, _ in looks}) >= 2
    of = [call for call in calls(everything[0]).values() if "15)" in call.decoder]
    own = [c for c in of if c.decoder == "em_inf(n_grad_steps=15)" and c.entropy_after]
    mean = sum((c.entropy_after or 0) * c.tokens for c in own) / sum(
        c.tokens for c in own
    )
    # The same problems and seeds as the decoder's own answers.
    assert mean == pytest.approx(wanted, abs=1e-4)


def test_report_is_written_again_without_a_server(
    everything: tuple[Path, dict[str, Any]], run: Run
) -> None:
    folder, _ = everything
    before = (folder / "report.md").read_bytes()
    (folder / "report.md").unlink()
    code, out, err = run("eval", "--report", str(folder), "--grader", "numeric", url=None)
    assert code == 0, err
    assert "greedy" in out
    assert (folder / "report.md").read_bytes() == before


def test_killed_run_goes_on_with_the_same_answers_and_asks_nothing_twice(
    server: Server, tmp_path: Path
) -> None:
    asked = [
        *COMMAND, "eval", "arithmetic", "--limit", "40", "--concurrency", "4",
        "--decoder", "temperature(1.0)", "--decoder", "self_consistency(n=2)",
        "--url", server.url,
    ]  # fmt: skip
    probes, wanted = 2, 40 * (1 + 2)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process = subprocess.Popen(
        [*asked, "--output", str(killed)], stderr=subprocess.DEVNULL, env=environ()
    )
    try:
        until = time.monotonic() + SECONDS
        while not (killed / JOURNAL).exists() or len(calls(killed)) < 12:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = calls(killed)
    assert 12 <= len(kept) < wanted
    idle(server)
    before = finished(server)
    for folder in (killed, undisturbed):
        said = subprocess.run(
            [*asked, "--output", str(folder)],
            capture_output=True, text=True, env=environ(), timeout=600,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        now = finished(server)
        missing = wanted - (len(kept) if folder == killed else 0)
        traced = len(json.loads((folder / "traces.json").read_text()))
        # The server may still have counted what was under way when its client died.
        under_way = 4 if folder == killed else 0
        asked_for = now - before - probes - traced
        assert missing <= asked_for <= missing + under_way
        before = now
    after, whole = calls(killed), calls(undisturbed)
    assert {key: after[key] for key in kept} == kept
    assert {key: call.text for key, call in after.items()} == {
        key: call.text for key, call in whole.items()
    }
    assert [(a.text, a.verdict) for a in load(killed).answers] == [
        (a.text, a.verdict) for a in load(undisturbed).answers
    ]


def idle(server: Server) -> None:
    """Wait until nothing runs there any more."""
    until = time.monotonic() + SECONDS
    while metric(server, "vllm:num_requests_running") + metric(
        server, "vllm:num_requests_waiting"
    ):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_interrupted_run_says_how_to_go_on(server: Server, tmp_path: Path) -> None:
    asked = ["eval", "arithmetic", "--limit", "200", "--decoder", "greedy"]
    with terminal(
        *asked, "--output", str(tmp_path), "--url", server.url, COLUMNS="400"
    ) as screen:
        screen.expect(r"[1-9]\d*/200")
        screen.send("\x03")
        assert screen.code() == 130
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.seen)
    assert "run the same command again: em-inf eval arithmetic" in plain
    assert "Traceback" not in plain
    assert len(calls(tmp_path)) > 0


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        ([], 2, "DATA is missing"),
        (["none.jsonl"], 2, "none.jsonl: cannot be read"),
        (["DATA"], 2, "line 17, field answer: is missing"),
        (["arithmetic", "--decoder", "beam"], 2, "'beam' is no kind of decoder"),
        (["arithmetic", "--baseline", "beam"], 2, "baseline: 'beam'"),
        (["arithmetic", "--grader", "kind"], 2, "'kind' is unknown"),
        (["arithmetic", "--limit", "0"], 2, "--limit"),
        (["arithmetic", "--url", "nowhere"], 2, "--url"),
        (["arithmetic", "--report", "x"], 2, "--report stands alone"),
        (["--report", "/nowhere"], 2, "cannot be read"),
        (["arithmetic", "--decoder", "greedy"], 3, "no server answers"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    run: Run, tmp_path: Path, args: list[str], code: int, reason: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    good = '{"prompt": "x", "answer": 1}\n'
    broken.write_text(good * 16 + '{"prompt": "x"}\n')
    args = [str(broken) if arg == "DATA" else arg for arg in args]
    url = None if "--url" in args else NOWHERE  # Whatever is sent there fails.
    ended, out, err = run("eval", *args, "--output", str(tmp_path / "out"), url=url)
    assert (ended, out) == (code, "")
    assert reason in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_setting_that_the_server_refuses_has_its_sentence(
    run: Run, tmp_path: Path
) -> None:
    code, _, err = run(
        "eval", "arithmetic", "--decoder", "em_inf(n_grad_steps=65)", "--limit", "3",
        "--output", str(tmp_path),
    )  # fmt: skip
    assert code == 2
    assert "the server refuses: em_inf.n_grad_steps: 65 is not allowed" in err
    assert not calls(tmp_path)


def test_replicated_row_stands_beside_its_base_and_greedy_with_the_papers_numbers(
    run: Run, tmp_path: Path
) -> None:
    copy = tmp_path / "math-500.jsonl"
    rows = [
        {
            "problem": f"What is {i} + 1?", "solution": "", "answer": str(i + 1),
            "subject": "Algebra", "level": 1, "unique_id": f"test/{i}.json",
        }
        for i in range(500)
    ]  # fmt: skip
    copy.write_text("\n".join(json.dumps(row) for row in rows))
    code, _, err = run(
        "eval", "math-500", "--path", str(copy), "--limit", "2", "--max-tokens", "40",
        "--replicate", "qwen2.5-7b/em_inf", "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, err
    made = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    paper = {decoder["kind"]: decoder["paper"][0] for decoder in made["decoders"]}
    assert paper == {"greedy": 74.2, "temperature": 74.0, "em_inf": 73.8}
    (em_inf,) = (d for d in made["decoders"] if d["kind"] == "em_inf")
    assert em_inf["request"]["em_inf"]["n_grad_steps"] == 3
    assert em_inf["request"]["temperature"] == 0.1
    assert em_inf["request"]["repetition_penalty"] == 1.05
    assert any("Qwen2.5-7B-Instruct" in note for note in em_inf["notes"])


def test_stock_server_compares_plain_decoders(
    run: Run, stock: Server, tmp_path: Path
) -> None:
    asked = ["eval", "arithmetic", "--limit", "3", "--output", str(tmp_path)]
    code, _, err = run(*asked, url=stock.url)
    assert code == 4
    assert "--decoder plain" in err
    code, _, err = run(*asked, "--decoder", "min_p(0.1)", url=stock.url)
    assert code == 0, err
    assert {call.entropy_before for call in calls(tmp_path).values()} == {None}
