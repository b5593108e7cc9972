"""Predict radiographs from an event loop, several at once, and print the findings that are present.

    python examples/predict_in_event_loop.py demo-output/chest.dcm [FILE ...]

Needs `pip install .`. The addresses are those of `cxr serve`; CXR_TRITON names others, with commas between them.
"""

import asyncio
import sys
from contextlib import aclosing

from client import AsyncCxrClient, CaseInput
from contract.errors import CxrError


async def main(files: list[str]) -> None:
    """Print a line for each file, in the order of the files."""
    cases = [CaseInput(file, file, image=file) for file in files]
    async with (
        AsyncCxrClient(timeout_s=60.0) as client,
        aclosing(client.predict_many(cases, in_flight=4, keep_going=True)) as answers,
    ):
        async for case, answer in answers:
            if isinstance(answer, CxrError):
                print(f"{case.id}: {answer}")
            else:
                present = [finding.name for finding in answer.findings if finding.present]
                print(f"{case.id}: {', '.join(present) or 'nothing present'}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
