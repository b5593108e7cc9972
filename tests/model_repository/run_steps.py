"""Runs the python models on the numpy that PYTHONPATH puts first, with as little of Triton around them as they need.

    python run_steps.py DICOM TOKENIZER

DICOM is a radiograph, TOKENIZER a bundle's tokenizer.json. Prints the version of numpy and, as JSON, a hash of each
output of each model.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from contract.report.tokens import TokenLimits
from contract.tensors import MODELS

MODEL_PY = Path(__file__).resolve().parents[2] / "model_repository" / "model.py"
PARAMETERS = {"image_size": "56", "text_mode": "findings", "max_length": "64"}
REPORT = b"FINDINGS: The heart is enlarged. There is a left effusion. IMPRESSION: Effusion."


class Tensor:
    def __init__(self, name, array):
        self.name, self.as_numpy = name, lambda: array


def stand_in_for_triton():
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = lambda message, code: RuntimeError(message)
    module.TritonError.INVALID_ARG = module.TritonError.INTERNAL = 0
    module.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(
        tensors=output_tensors, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: request.tensors[name]
    sys.modules["triton_python_backend_utils"] = module


def ask(name, root, arrays):
    """Return the outputs of one python model for two equal requests in one batch."""
    spec = importlib.util.spec_from_file_location("model", MODEL_PY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = {
        "input": [{"name": tensor.name} for tensor in MODELS[name].inputs],
        "parameters": {key: {"string_value": value} for key, value in PARAMETERS.items()},
    }
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_name": name,
            "model_config": json.dumps(config),
            "model_repository": str(root),
            "model_version": "1",
        }
    )
    tensors = {tensor.name: Tensor(tensor.name, arrays[tensor.name]) for tensor in MODELS[name].inputs}
    request = SimpleNamespace(tensors=tensors, requested_output_names=list)
    answers = model.execute([request, request])
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return {tensor.name: tensor.as_numpy() for tensor in answers[-1].tensors}


def describe(array):
    data = b"".join(array.reshape(-1).tolist()) if array.dtype == object else array.tobytes()
    return [str(array.dtype), list(array.shape), hashlib.sha256(data).hexdigest()]


def main(dicom, tokenizer):
    stand_in_for_triton()
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "1").mkdir()
        shutil.copy(tokenizer, Path(root) / "1" / "tokenizer.json")
        TokenLimits(120, 64).write(Path(root) / "1")
        arrays = {
            "image_bytes": np.array([[dicom.read_bytes()]], dtype=np.object_),
            "report": np.array([[REPORT]], dtype=np.object_),
            "image_tokens": np.zeros((1, 49, 32), dtype=np.float32),
        }
        found = {}
        for name in [name for name, spec in MODELS.items() if spec.backend == "python"]:
            outputs = ask(name, root, arrays)
            arrays |= outputs
            found[name] = {output: describe(array) for output, array in outputs.items()}
    print(np.__version__)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
