"""What a P4Runtime request is refused with.

RequestRefused
  `code` is gRPC's canonical code, the message is for the developer of the controller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from dataplane.switch import pipeline


class Code(IntEnum):
    """gRPC's canonical codes, as google.rpc.Status and p4.v1.Error carry them."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RequestRefused(Exception):
    """A request, or one element of a batch, that is not carried out."""

    def __init__(self, code: Code, message: str) -> None:
        """Keep the code beside the message."""
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> RequestRefused:
    """Return the commonest refusal: the request is malformed."""
    return RequestRefused(Code.INVALID_ARGUMENT, message)


def unimplemented(message: str) -> RequestRefused:
    """Return the refusal of something that this server does not offer."""
    return RequestRefused(Code.UNIMPLEMENTED, message)


_PIPELINE_CODES: dict[type[pipeline.PipelineError], Code] = {
    pipeline.PipelineRejected: Code.INVALID_ARGUMENT,
    pipeline.EntryExists: Code.ALREADY_EXISTS,
    pipeline.EntryNotFound: Code.NOT_FOUND,
    pipeline.TableFull: Code.RESOURCE_EXHAUSTED,
    pipeline.BadEntry: Code.INVALID_ARGUMENT,
}


def from_pipeline(error: pipeline.PipelineError) -> RequestRefused:
    """Translate what the pipeline answered."""
    for kind, code in _PIPELINE_CODES.items():
        if isinstance(error, kind):
            return RequestRefused(code, str(error))
    return RequestRefused(Code.INTERNAL, str(error))


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the pipeline raises into the refusal of the request."""
    try:
        yield
    except pipeline.PipelineError as ex:
        raise from_pipeline(ex) from ex
