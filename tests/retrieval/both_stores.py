"""Tests that run on both stores: files on this machine, and Milvus (Milvus Lite behind its gRPC port)."""

import pytest

on_both_stores = pytest.mark.parametrize("store_kind", ["files", "milvus"], indirect=True)
# The rest of them on Milvus: it creates a collection in each test.
on_both_stores_slowly = pytest.mark.parametrize(
    "store_kind", ["files", pytest.param("milvus", marks=pytest.mark.slow)], indirect=True
)
