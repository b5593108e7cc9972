"""Runs graphs on the onnxruntime that PYTHONPATH puts first. Needs nothing else of this project.

    python run_graphs.py DIRECTORY VERSION

DIRECTORY holds graphs.json (key -> file) and case-*.npz with all inputs by name; every graph answers every case, into
answers-*.npz as "key output".
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(directory: Path, version: str) -> None:
    assert onnxruntime.__version__ == version, (onnxruntime.__version__, onnxruntime.__file__)
    onnxruntime.set_default_logger_severity(3)
    graphs = json.loads((directory / "graphs.json").read_text())
    sessions = {
        key: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for key, path in graphs.items()
    }
    for path in sorted(directory.glob("case-*.npz")):
        with np.load(path) as case:
            inputs = dict(case)
        answers = {}
        for key, session in sessions.items():
            names = [value.name for value in session.get_outputs()]
            feed = {value.name: inputs[value.name] for value in session.get_inputs()}
            for name, array in zip(names, session.run(names, feed), strict=True):
                answers[f"{key} {name}"] = array
        np.savez(path.with_name(path.name.replace("case", "answers")), **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
