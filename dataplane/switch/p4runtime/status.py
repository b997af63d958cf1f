"""Errors on the wire: google.rpc.Status with one p4.v1.Error for each element of a batch.

Spec section "Error Reporting Messages". The details travel in the trailing metadata, which clients limit (gRPC's
default is 8 KiB, finsy takes 64 KiB). So messages of later errors are left out where they would not fit, and all
details where the codes alone would not; then the overall message names the first failures.
"""

from __future__ import annotations

from collections.abc import Sequence

from finsy.proto import p4r, rpc_status

from dataplane.switch.p4runtime.errors import Code, RequestRefused

DETAILS_KEY = "grpc-status-details-bin"
MAX_DETAILS = 48 << 10
_TYPE_URL = "type.googleapis.com/p4.v1.Error"
_BARE_SIZE = len(_TYPE_URL) + 16
"""Upper bound of an error's size without its message."""
SPACE = "p4ferry"


def batch_status(results: Sequence[RequestRefused | None], what: str) -> rpc_status.Status:
    """Return the status of a batch of which at least one element failed."""
    failed = [(i, result) for i, result in enumerate(results) if result is not None]
    named = "; ".join(f"{what} {i}: {_name(result.code)}: {result.message}" for i, result in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    status = rpc_status.Status(
        code=Code.UNKNOWN, message=_ascii(f"{len(failed)} of {len(results)} failed: {named}{more}")
    )
    room = MAX_DETAILS - len(results) * _BARE_SIZE
    if room < 0:
        return status
    for result in results:
        error = p4r.Error(canonical_code=result.code if result else Code.OK)
        if result is not None and len(result.message) < room:
            room -= len(result.message)
            error.message, error.space = result.message, SPACE
            room -= len(SPACE)
        status.details.add(type_url=_TYPE_URL, value=error.SerializeToString())
    return status


def _name(code: Code) -> str:
    return Code(code).name


def _ascii(message: str) -> str:
    """Keep what a gRPC message may hold, and no more than a client takes."""
    return message.encode("ascii", "backslashreplace").decode()[:1500]
