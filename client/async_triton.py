"""Requests to Triton from an event loop. The rules are those of `client.triton_core`.

Tensors travel in the gRPC messages: this transport does not use shared memory, whose calls block.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import aio as triton

from client.channel import Calls, ChannelSettings, Request, make_request
from client.event_loop import LoopOwner
from client.served import ServedModel
from client.steps import run_async
from client.triton_core import Answer, Client, TritonCore
from contract.tensors import ModelSpec


class _Lane:
    """One connection. All requests of a loop share it, because HTTP/2 carries many at once."""

    def __init__(self, url: str, settings: ChannelSettings) -> None:
        options = settings.make_channel_arguments()
        self.client: Client = settings.connection.open_triton(triton.InferenceServerClient, url, options)
        self.closed = False

    def prepare(
        self, spec: ModelSpec, arrays: Sequence[NDArray[Any]], outputs: Sequence[str], *, keep: bool
    ) -> Request:
        """Return new request objects: those of `client.channel.Lane` cannot serve two requests at once."""
        del keep
        return make_request(spec, arrays, outputs)


class AsyncTritonTransport(TritonCore):
    """Sends requests to one Triton. Several tasks of one event loop may use it at once."""

    def __init__(self, url: str, settings: ChannelSettings | None = None) -> None:
        """See `client.triton_core.TritonCore`. The carrier of the settings is not used."""
        super().__init__(url, settings)
        self._lane: _Lane | None = None
        self._owner = LoopOwner()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout_s: float,
        *,
        calls: Calls | None = None,
    ) -> Answer:
        """Run one served model; see `client.triton.TritonTransport.infer`. Cancelling the task cancels the request."""
        return await run_async(self._infer_in_steps(model, inputs, outputs, timeout_s, calls))

    async def read_model(
        self,
        timeout_s: float,
        model: str = "predict_study",
        version: str = "",
        *,
        calls: Calls | None = None,
    ) -> ServedModel:
        """Return the facts about a served model; see `client.triton.TritonTransport.read_model`."""
        return await run_async(self._read_model_in_steps(timeout_s, model, version, calls))

    async def check_ready(self, timeout_s: float) -> str | None:
        """Return None if the server and all its models are ready, else the reason in one sentence."""
        return await run_async(self._check_ready_in_steps(timeout_s))

    async def close(self) -> None:
        """Close all connections, which cancels the running requests here and on the server.

        A later request is a CancelledError.
        """
        self._closed = True
        self._forget_client()
        for client in list(self._forgotten):
            await client.close()

    def _client(self) -> Client:
        return self._open_lane().client

    def _forget_client(self) -> None:
        if self._lane is not None:
            self._forgotten.add(self._lane.client)
        self._lane = None

    @contextmanager
    def _use_lane(self, calls: Calls | None) -> Iterator[_Lane]:
        del calls  # cancelling the task cancels the request
        yield self._open_lane()

    def _give_up(self, lane: _Lane) -> None:
        if lane is self._lane:
            self._forget_client()

    def _open_lane(self) -> _Lane:
        self._require_open()
        self._owner.require()
        if self._lane is None:
            self._lane = _Lane(self.url, self.settings)
        return self._lane
