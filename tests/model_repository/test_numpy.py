"""The python models answer alike, byte for byte, on both numpys that NVIDIA's images may hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract import ngc
from contract.tensors import MODELS

pytest.importorskip("tokenizers")
pytest.importorskip("cv2")
RUN_STEPS = Path(__file__).with_name("run_steps.py")
ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("1.26.4", "2.4.6")  # the last of 1, and the newest for Python 3.11


@pytest.fixture(scope="module")
def files(chest_files, tmp_path_factory):
    from contract.report.text import train_tokenizer

    root = tmp_path_factory.mktemp("steps")
    (root / "frontal.dcm").write_bytes(chest_files["frontal"])
    train_tokenizer(
        ["The heart is enlarged. There is a left effusion."] * 5, root / "tokenizer.json", vocab_size=120
    )
    return [root / "frontal.dcm", root / "tokenizer.json"]


def run_steps(numpy, files):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(numpy), str(ROOT)])}
    result = subprocess.run(
        [sys.executable, RUN_STEPS, *files], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    version, answers = result.stdout.splitlines()
    return version, json.loads(answers)


def test_every_python_model_answers_alike_on_both_numpys(files, install_aside):
    answers = []
    for wanted, line in zip(VERSIONS, ngc.NUMPY, strict=True):
        assert wanted.startswith(f"{line}.")
        directory, version = install_aside("numpy", wanted)
        found, answer = run_steps(directory, files)
        assert found == version
        answers.append(answer)
    first, second = answers
    for name, spec in MODELS.items():
        if spec.backend == "python":
            assert set(first[name]) == {tensor.name for tensor in spec.outputs}
            assert first[name] == second[name], name
