"""Triton and the retrieval sidecar on one machine, started only from pip packages.

Imports only `contract`, needs Linux, and imports nothing heavy until a server is started.
"""

__all__ = ["doctor", "inprocess", "probe", "stack"]
