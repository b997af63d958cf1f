"""Who is primary: P4Runtime's client arbitration for one device and the default role.

Pure bookkeeping (spec section "Client Arbitration and Controller Replication"): a client is any object that stands
for an open stream; what must be sent is returned, never sent. Named roles are not offered.
"""

from __future__ import annotations

from collections.abc import Hashable

from finsy.proto import p4r

from dataplane.switch.p4runtime.errors import Code, RequestRefused, invalid, unimplemented

Client = Hashable
Notifications = list[tuple[Client, p4r.MasterArbitrationUpdate]]

MAX_CLIENTS = 16


def election_id(message: p4r.Uint128) -> int:
    """Return the 128-bit number."""
    return int(message.high) << 64 | int(message.low)


class Arbitration:
    """The live controllers of a device, and which of them is the primary."""

    def __init__(self, device_id: int) -> None:
        """Start without controllers; "a full restart is the only way to reset the election_id"."""
        self.device_id = device_id
        self.primary: Client | None = None
        self._clients: dict[Client, int | None] = {}
        self._highest: int | None = None

    def update(self, client: Client, message: p4r.MasterArbitrationUpdate) -> Notifications:
        """Take a client's bid; raises RequestRefused, upon which its stream ends."""
        self._check(client, message)
        bid = election_id(message.election_id) if message.HasField("election_id") else None
        if bid is not None and any(bid == used for c, used in self._clients.items() if c is not client):
            # finsy's conflict handling recognises this wording, which is also BMv2's.
            raise invalid(f"election id {bid} is used by another controller: Election id already exists")
        self._clients[client] = bid
        was_primary = self.primary is client
        if bid is not None and (self._highest is None or bid >= self._highest):
            self._highest = bid
            self.primary = client
            return self._notify_all()
        if was_primary:
            self.primary = None
            return self._notify_all()
        return [(client, self._notification(client))]

    def _check(self, client: Client, message: p4r.MasterArbitrationUpdate) -> None:
        known = client in self._clients
        if message.device_id != self.device_id:
            code = Code.FAILED_PRECONDITION if known else Code.NOT_FOUND
            raise RequestRefused(
                code, f"device {message.device_id} is not known here: this is device {self.device_id}"
            )
        if message.role.name or message.role.id:
            role = message.role.name or message.role.id
            raise unimplemented(f"role {role!r}: only the default role is offered, leave the role unset")
        if message.role.HasField("config"):
            raise invalid("role.config is not taken: the default role has full pipeline access")
        if not known and len(self._clients) >= MAX_CLIENTS:
            raise RequestRefused(Code.RESOURCE_EXHAUSTED, f"{MAX_CLIENTS} controllers are connected already")

    def remove(self, client: Client) -> Notifications:
        """Forget a client whose stream has ended."""
        self._clients.pop(client, None)
        if self.primary is not client:
            return []
        self.primary = None
        return self._notify_all()

    def check_primary(self, role: str, message: p4r.Uint128 | None) -> None:
        """Raise RequestRefused unless a request with this role and election id is the primary's."""
        if role:
            raise RequestRefused(Code.NOT_FOUND, f"role {role!r}: only the default role is offered")
        bid = election_id(message) if message is not None else None
        if self.primary is None or self._clients[self.primary] != bid:
            raise RequestRefused(Code.PERMISSION_DENIED, "Not primary: the election id is not the primary's")

    def _notify_all(self) -> Notifications:
        # Backups first: "The server notifies all controllers other than the new primary client".
        order = sorted(self._clients, key=lambda client: client is self.primary)
        return [(client, self._notification(client)) for client in order]

    def _notification(self, client: Client) -> p4r.MasterArbitrationUpdate:
        message = p4r.MasterArbitrationUpdate(device_id=self.device_id)
        if self._highest is not None:
            message.election_id.high, message.election_id.low = (
                self._highest >> 64,
                self._highest & (1 << 64) - 1,
            )
        if client is self.primary:
            message.status.code = Code.OK
            message.status.message = "you are the primary"
        elif self.primary is not None:
            message.status.code = Code.ALREADY_EXISTS
            message.status.message = "another controller is the primary"
        else:
            message.status.code = Code.NOT_FOUND
            message.status.message = "there is no primary"
        return message
