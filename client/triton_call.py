"""One request to a served model, and the sizes of its outputs."""

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from contract.tensors import ModelSpec, TensorSpec


class Call:
    """One request: the model, the inputs, the wanted outputs and the deadline.

    Attributes:
        spec: The model.
        arrays: The inputs in the order of the model, batched.
        outputs: Names of the wanted outputs.
        deadline: The end of the time for the request (`time.monotonic`).
        priority: As in `client.channel.Calls`. A model without priorities ignores it.
        key: Equal for requests whose outputs have equal sizes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        arrays: Sequence[NDArray[Any]],
        outputs: tuple[str, ...],
        deadline: float,
        priority: int = 0,
    ) -> None:
        """Take the parts of the request."""
        self.spec = spec
        self.arrays = arrays
        self.outputs = outputs
        self.deadline = deadline
        self.priority = priority
        self.key = (spec.name, outputs, *(array.shape for array in arrays))

    def count_items(self, output: TensorSpec, dims: Sequence[int], tokens: int) -> int:
        """Return the number of values in an output.

        Args:
            output: The output in the tensor table.
            dims: Its dimensions in the server's configuration; -1 for a dimension that depends on the request.
            tokens: Number of tokens of one image, N.
        """
        sizes: dict[str, int] = {}
        for entry, array in zip(self.spec.inputs, self.arrays, strict=True):
            for letter, size in zip(entry.shape, array.shape[1:], strict=True):
                sizes[str(letter)] = size
        views = sizes.get("V", 1)
        sizes |= {"V": views, "I": views * tokens}
        shape = (
            sizes.get(str(letter), 0) if dim == -1 else dim
            for letter, dim in zip(output.shape, dims, strict=True)
        )
        return len(self.arrays[0]) * math.prod(shape)

    @property
    def sized_outputs(self) -> list[str]:
        """Names of the wanted outputs whose sizes follow from the shapes of the inputs.

        These are numbers. With a report as input, the number of tokens is unknown.
        """
        has_length = any("L" in entry.shape for entry in self.spec.inputs)
        return [
            entry.name
            for entry in self.spec.outputs
            if entry.name in self.outputs
            and entry.dtype != "BYTES"
            and (has_length or "L" not in entry.shape)
        ]
