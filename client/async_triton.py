"""Requests to Triton from an event loop. The rules are those of `client.triton_core`.

Tensors travel in the gRPC messages: this transport does not use shared memory, whose calls block.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import aio as triton

from client.channel import Calls, ChannelSettings, Request, make_request
from client.served import ServedModel
from client.status import make_cancelled_error
from client.steps import Steps, run_async
from client.triton_call import Call
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
        self, timeout_s: float, model: str = "predict_study", version: str = ""
    ) -> ServedModel:
        """Return the facts about a served model; see `client.triton.TritonTransport.read_model`."""
        return await run_async(self._read_model_in_steps(timeout_s, model, version))

    async def check_ready(self, timeout_s: float) -> str | None:
        """Return None if the server and all its models are ready, else the reason in one sentence."""
        return await run_async(self._check_ready_in_steps(timeout_s))

    async def close(self) -> None:
        """Close the connection, which cancels the running requests here and on the server."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.closed = True
            await lane.client.close()

    def _client(self) -> Client:
        return self._open_lane().client

    def _forget_client(self) -> None:
        self._lane = None  # the connection closes when its last request ends

    @contextmanager
    def _use_lane(self, calls: Calls | None) -> Iterator[_Lane]:
        del calls
        yield self._open_lane()

    def _give_up(self, lane: _Lane) -> None:
        if lane is self._lane:
            self._forget_client()

    def _carry(self, lane: _Lane, call: Call) -> Steps[Answer]:
        """Send a request over gRPC. A connection that `close` has closed ends it with the project's error."""
        try:
            return (yield from self._carry_plain(lane, call))
        except asyncio.CancelledError as error:
            if not lane.closed:
                raise
            raise make_cancelled_error(self.url) from error

    def _open_lane(self) -> _Lane:
        if self._lane is None:
            self._lane = _Lane(self.url, self.settings)
        return self._lane
