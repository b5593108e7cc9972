"""What the retrieval sidecar accepts, and its callers check before they ask (`contract/proto/retrieval.proto`)."""

from typing import Final

MAX_K: Final = 1000  # cases in the answer to a query
MAX_MESSAGE_BYTES: Final = 64 * 2**20  # of a request and of an answer
