"""Python client of the served model: prediction, similar cases, indexing, and offline explanations.

    from client import CxrClient

    with CxrClient("127.0.0.1:8001", "127.0.0.1:8005") as client:
        prediction = client.predict("chest.dcm", "Small left effusion.")
        cases = client.search(report="Large right pneumothorax.", k=5)

Explanations (`client.explain`) run offline on a bundle and need the `explain` extra.
"""

from client.client import CxrClient
from client.prompt_scores import FindingScore
from client.results import (
    BatchPrediction,
    CaseInput,
    ConformalSet,
    Finding,
    Health,
    IndexResult,
    Prediction,
    SearchResult,
    ServedModel,
    SimilarCase,
)

__all__ = [
    "BatchPrediction",
    "CaseInput",
    "ConformalSet",
    "CxrClient",
    "Finding",
    "FindingScore",
    "Health",
    "IndexResult",
    "Prediction",
    "SearchResult",
    "ServedModel",
    "SimilarCase",
]
