"""Arbitration as a state machine: the specification's invariants hold after any sequence of events."""

from __future__ import annotations

from finsy.proto import p4r
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataplane.switch.p4runtime.arbitration import Arbitration, Notifications
from dataplane.switch.p4runtime.errors import Code, RequestRefused

DEVICE = 3


def bid(election: int | None) -> p4r.MasterArbitrationUpdate:
    """Return a bid with an election id, or with none."""
    message = p4r.MasterArbitrationUpdate(device_id=DEVICE)
    if election is not None:
        message.election_id.high, message.election_id.low = election >> 64, election & (1 << 64) - 1
    return message


class ArbitrationMachine(RuleBasedStateMachine):
    """Controllers come, bid, and go; what each was told last must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.arbitration = Arbitration(DEVICE)
        self.bids: dict[str, int | None] = {}
        self.told: dict[str, int] = {}
        self.highest: int | None = None

    def note(self, notifications: Notifications) -> None:
        for client, message in notifications:
            assert isinstance(client, str)
            self.told[client] = message.status.code
            assert message.HasField("election_id") == (self.highest is not None)
            if self.highest is not None:
                assert (message.election_id.high << 64 | message.election_id.low) == self.highest

    @rule(
        client=st.sampled_from("abcd"),
        election=st.one_of(st.none(), st.integers(0, 4), st.just((1 << 128) - 1)),
    )
    def bid(self, client: str, election: int | None) -> None:
        used = election is not None and election in [b for c, b in self.bids.items() if c != client]
        try:
            if election is not None and not used:
                self.highest = max(election, -1 if self.highest is None else self.highest)
            self.note(self.arbitration.update(client, bid(election)))
        except RequestRefused as ex:
            assert used and ex.code is Code.INVALID_ARGUMENT
            self.leave(client)  # its stream ends
        else:
            assert not used
            self.bids[client] = election

    @rule(client=st.sampled_from("abcd"))
    def leave(self, client: str) -> None:
        self.bids.pop(client, None)
        self.told.pop(client, None)
        self.note(self.arbitration.remove(client))

    @invariant()
    def primary_has_the_highest_id_ever(self) -> None:
        """And everybody knows whether there is one, and whether it is him."""
        holders = [client for client, b in self.bids.items() if b is not None and b == self.highest]
        assert self.arbitration.primary == (holders[0] if holders else None)
        for client in self.bids:
            if client in holders:
                assert self.told[client] == Code.OK
            else:
                assert self.told[client] == (Code.ALREADY_EXISTS if holders else Code.NOT_FOUND)

    @invariant()
    def only_the_primary_may_write(self) -> None:
        for election in {*self.bids.values(), None, 99}:
            message = bid(election).election_id if election is not None else None
            try:
                self.arbitration.check_primary("", message)
            except RequestRefused as ex:
                assert ex.code is Code.PERMISSION_DENIED
                assert (
                    election != self.bids.get(str(self.arbitration.primary))
                    or self.arbitration.primary is None
                )
            else:
                assert election is not None and election == self.highest


TestArbitration = ArbitrationMachine.TestCase
