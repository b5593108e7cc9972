"""Predict with plain tritonclient: what any KServe v2 client does, without a line of this project.

    python examples/predict_with_tritonclient.py demo-output/chest.dcm "Small left pleural effusion."

Needs `pip install 'tritonclient[grpc]'`. The address is that of `cxr serve`; CXR_TRITON names another.
Research and teaching only: never a diagnosis.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput


def make_input(name: str, value: bytes) -> InferInput:
    """Return one value of type BYTES as a batch of one, shape (1, 1)."""
    tensor = InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
    return tensor


def main(image: str, report: str) -> None:
    """Print the findings that reach their threshold, and what the server noticed about the image."""
    with InferenceServerClient(os.environ.get("CXR_TRITON", "127.0.0.1:8001")) as triton:
        answer = triton.infer(
            "predict_study",
            [make_input("image_bytes", Path(image).read_bytes()), make_input("report", report.encode())],
            outputs=[InferRequestedOutput("probabilities"), InferRequestedOutput("image_notes")],
            client_timeout=30,
        )
        # Names and thresholds are parameters of the model; the keys are the ways to read a study.
        config = triton.get_model_config("predict_study", as_json=True)["config"]
    labels = json.loads(config["parameters"]["decisions"]["string_value"])["study"]
    probabilities = answer.as_numpy("probabilities")[0]  # (22,)
    for label, probability in zip(labels, probabilities, strict=True):
        if probability >= label.get("threshold", 1.0):  # none: the model decides nothing here
            print(f"{label['name']}: {probability:.3f}")
    for warning in json.loads(answer.as_numpy("image_notes")[0, 0])["warnings"]:
        print("Warning:", warning)


if __name__ == "__main__":
    main(*sys.argv[1:3])
