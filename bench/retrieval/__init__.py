"""`cxr bench retrieval`: the retrieval sidecar against raw FAISS, and against the disk."""
