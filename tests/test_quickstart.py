"""scripts/quickstart from its first line to its last, on a smaller model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALLER = (
    "--plain",
    "--gin.Run.steps=30",
    "--gin.Run.eval_every_steps=0",
    "--gin.XGLMConfig.d_model=32",
    "--gin.XGLMConfig.ffn_dim=64",
    "--gin.XGLMConfig.num_layers=1",
)


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(),
    reason="runs in the environment that scripts/setup makes: use scripts/test",
)
def test_quickstart_trains_once_and_then_has_nothing_to_do(tmp_path):
    command = [ROOT / "scripts" / "quickstart", *SMALLER, f"--gin.Run.folder='{tmp_path}/run'"]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        outputs.append(done.stdout)
    first, second = outputs
    assert "started at step 0" in first and "nothing to do" not in first
    before, after = re.search(r"perplexity: ([\d,.]+) before, ([\d,.]+) after", first).groups()
    assert float(after.replace(",", "")) < float(before.replace(",", "")) / 2
    assert "unigram baseline:" in first and "[The with statement]" in first
    assert (tmp_path / "run" / "loss.png").exists()
    assert "is finished (30 steps): nothing to do" in second and "started" not in second
    assert "step 1/" not in second
