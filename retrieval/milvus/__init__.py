"""Cases in a Milvus database: one collection for each model, searched by Milvus, exactly.

    database.py ─> model.py ─┬─> candidates.py   exact answers from the candidates of Milvus
    (all models) (one model) └─> collection.py ─> rows.py, expressions.py, connection.py
                                 (what Milvus is asked)

The package pymilvus is imported only when a Milvus database is opened.
"""
