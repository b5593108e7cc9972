"""The retrieval sidecar: cases kept in SQLite, searched with FAISS, served over gRPC.

    server.py ─> listener.py ─> service.py ─> indexes.py ─┬─> worker.py ─> index.py   the thread that owns an index
    (command)    (gRPC, health)  (methods)   (each model) └─> store.py ─> schema.py   the durable data, and its tables

    store.py ─> table.py, checks.py (one row), migration.py, copying.py; service.py ─> listing.py, backup.py
    listener.py ─> packed.py (requests to add)
    restoring.py ─> verification.py   without a server
    index.py ─> codes.py (candidates), rows.py (filters), diversity.py; service.py ─> requests.py, evidence.py

Run it with `python -m retrieval.server --store DIRECTORY`.
"""

__all__ = ["server", "store"]
