"""Predict every DICOM file of a folder from Python, several requests at once, into one Parquet file.

    python examples/predict_folder_to_parquet.py demo-output/phantom/dicom results.parquet

Needs `pip install . pyarrow`. The address is that of `cxr serve`; CXR_TRITON names another. The command
`cxr predict FOLDER --out FILE` does the same and more: it goes on after an interrupt, and reads lists.
Research and teaching only: never a diagnosis.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from client import CaseInput, CxrClient
from contract.errors import CxrError


def list_cases(folder: Path) -> Iterator[CaseInput]:
    """Yield a case for each file; its image is read when its turn comes."""
    for path in sorted(folder.rglob("*.dcm")):
        yield CaseInput(id=str(path), study_id=path.parent.name, image=path)


def main(folder: str, out: str) -> None:
    """Write path, error and the probability of each label, a row for each file."""
    rows = []
    with CxrClient(os.environ.get("CXR_TRITON", "127.0.0.1:8001"), timeout_s=60.0) as client:
        for case, answer in client.predict_many(list_cases(Path(folder)), in_flight=4):
            if isinstance(answer, CxrError):
                rows.append({"path": case.id, "error": str(answer)})
            else:
                probabilities = {finding.key: finding.probability for finding in answer.findings}
                rows.append({"path": case.id, "error": None, **probabilities})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    parquet.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), out)
    print(f"{len(rows)} files in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
