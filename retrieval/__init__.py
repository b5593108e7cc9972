"""The retrieval sidecar: cases kept in SQLite and searched with FAISS, or both with Milvus, served over gRPC.

    server.py ─> listener.py ─> service.py ─> backend.py        the seam: what answers the methods
    (command)    (gRPC, health)  (methods)

    backend.py <─ indexes.py ─> model_index.py ─┬─> worker.py ─> index.py   the thread that owns an index
                 (files)        (each model)    └─> store.py ─> schema.py   the durable data, and its tables

    backend.py <─ milvus/         a Milvus database; stores.py chooses between the two

    store.py ─> opening.py ─> migration.py; store.py ─> table.py, checks.py (one row), copying.py
    model_index.py ─> listing.py; indexes.py ─> backup.py
    listener.py ─> packed.py (requests to add)
    restoring.py ─> verification.py                without a server
    migrating.py ─> file_shelf.py, milvus/shelf.py   from one store into another, without a server of the files
    worker.py ─> builder.py ─> parts.py, recall.py     another kind, built beside the live index; see kinds.py
    worker.py ─> kind_index.py                         the index that is flat first and then answers by that kind

    index.py ─> codes.py (candidates), rows.py (filters), diversity.py; service.py ─> requests.py, evidence.py

Run it with `python -m retrieval.server --store DIRECTORY`.
"""

__all__ = ["server", "store"]
