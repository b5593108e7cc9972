"""Python client of the served model: prediction, similar cases, indexing, and offline explanations.

    from client import CxrClient

    with CxrClient("127.0.0.1:8001", "127.0.0.1:8005") as client:
        prediction = client.predict("chest.dcm", "Small left effusion.")
        cases = client.search(report="Large right pneumothorax.", k=5)

Explanations (`client.explain`) need no server but a bundle, and the `explain` extra.
"""

from client.async_client import AsyncCxrClient
from client.backup import Backup
from client.cases import CaseInput, IndexResult, ListedCase, SearchResult, SimilarCase
from client.client import CxrClient
from client.health import Health
from client.prediction import BatchPrediction, ConformalSet, Finding, Prediction
from client.prompt_scores import FindingScore
from client.search_options import SearchOptions
from client.served import ServedModel
from contract.connection import TLS

__all__ = [  # noqa: RUF022  in the order of sorted()
    "AsyncCxrClient",
    "Backup",
    "BatchPrediction",
    "CaseInput",
    "ConformalSet",
    "CxrClient",
    "Finding",
    "FindingScore",
    "Health",
    "IndexResult",
    "ListedCase",
    "Prediction",
    "SearchOptions",
    "SearchResult",
    "ServedModel",
    "SimilarCase",
    "TLS",
]
