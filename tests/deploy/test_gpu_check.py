"""The check for a borrowed GPU, here under Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def gpu_check(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy/gpu-check"), *flags],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environ},
        capture_output=True,
        text=True,
    )


def test_it_writes_one_file_with_versions_tests_and_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = gpu_check("--quick", "--out", str(out), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert results["tests"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert results["about"]["torch"]
    assert results["kernels"]["cases"][0]["distance_to_reference"] <= 1e-4
    assert len(results["figures"]["results"]["worker, us a token"]) == 3


def test_it_refuses_a_machine_without_a_gpu_and_says_what_else_runs(
    tmp_path: Path,
) -> None:
    out = tmp_path / "results.json"
    done = gpu_check("--quick", "--out", str(out), TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert "torch sees no GPU" in done.stderr
    assert "TRITON_INTERPRET=1" in done.stderr
    assert not out.exists()


def test_it_refuses_a_folder_without_wheels(tmp_path: Path) -> None:
    done = gpu_check("--wheels", str(tmp_path))
    assert done.returncode == 1
    assert f"--wheels {tmp_path} holds no .whl file" in done.stderr


def test_it_makes_links_again_that_a_copy_of_the_tree_has_lost(tmp_path: Path) -> None:
    for name in ("clients", "evaluation", "loadtests", "logits_processors", "server"):
        (tmp_path / name).mkdir()
    for name in ("deploy", "em_inf"):
        (tmp_path / name).mkdir()
    script = tmp_path / "deploy" / "gpu-check"
    script.write_bytes((ROOT / "deploy" / "gpu-check").read_bytes())
    # It goes no further than to find that this Python has nothing of what it needs.
    command = [sys.executable, str(script), "--python", "/bin/false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "em_inf" / "server").resolve() == tmp_path / "server"
    assert len(list((tmp_path / "em_inf").iterdir())) == 5
