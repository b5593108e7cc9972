"""The retrieval sidecar: cases kept in SQLite, searched with FAISS, served over gRPC.

    server.py ─> listener.py ─> service.py ─> indexes.py ─┬─> worker.py ─> index.py   the one thread that owns an index
    (command)    (gRPC, health)  (methods)    (each model) └─> store.py                the truth, from which it is derived

Run it with `python -m retrieval.server --store DIRECTORY`.
"""
