"""Definitions that every part of the stack shares: labels, tensors, preprocessing, bundles, errors.

Works at numpy level and never imports torch, faiss or tritonclient.
"""

__all__ = [
    "bundle",
    "decisions",
    "errors",
    "image",
    "labels",
    "notes",
    "report",
    "repository",
    "runtime",
    "steps",
    "tensors",
]
