"""Many threads at once: the pipeline sees one call at a time, batches stay whole, nothing is left of the dead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from finsy.proto import p4r

from dataplane.switch.p4runtime.controller import Controller
from dataplane.switch.p4runtime.device import Device
from dataplane.switch.p4runtime.errors import Code, RequestRefused
from tests.dataplane.p4runtime.client import Client, Stream, delete, exact_entry, insert
from tests.dataplane.p4runtime.conftest import ModelSwitch
from tests.dataplane.p4runtime.model import ModelPipeline
from tests.dataplane.p4runtime.test_p4runtime_sessions import packet_out

ROWS = 300


def watch(pipeline: ModelPipeline) -> list[str]:
    """Note every call that begins while another has not ended."""
    inside = threading.Lock()
    overlaps: list[str] = []

    def guarded(name: str, call: Callable[..., object], *arguments: object) -> object:
        if not inside.acquire(blocking=False):
            overlaps.append(name)
            return call(*arguments)
        try:
            return call(*arguments)
        finally:
            inside.release()

    for name in ("apply", "packet_out", "read_counters", "read_direct_counters"):
        setattr(pipeline, name, partial(guarded, name, getattr(pipeline, name)))
    return overlaps


def test_everything_at_once(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """Writers toggle whole batches, a reader must never see half of one; packets go out all the while."""
    overlaps = watch(switch.engine.running)
    failures: list[str] = []
    done = threading.Event()

    def toggle(first: int) -> None:
        rows = [exact_entry(number) for number in range(first, first + ROWS)]
        for _ in range(10):
            ready.write(*map(insert, rows))
            ready.write(*map(delete, rows))

    def read() -> None:
        while not done.is_set():
            found = len(ready.read_table(counter_data=p4r.CounterData()))
            if found % ROWS:
                failures.append(f"{found} rows: half a batch")
            ready.read(p4r.Entity(counter_entry=p4r.CounterEntry()))

    def send() -> None:
        for number in range(500):
            primary.send(packet=packet_out(1, 1, number, b"x"))

    writers = [threading.Thread(target=toggle, args=(first,)) for first in (1, 1001, 2001)]
    others = [threading.Thread(target=read), threading.Thread(target=send)]
    for thread in writers + others:
        thread.start()
    for thread in (*writers, others[1]):
        thread.join(30)
    done.set()
    others[0].join(10)
    assert not any(thread.is_alive() for thread in writers + others)
    assert failures == []
    assert overlaps == []
    assert ready.read_table() == []


def test_a_late_bid_makes_no_ghost() -> None:
    """A bid that is handled after its stream ended is refused: nobody would ever remove it."""
    device = Device(1)
    controller = Controller("gone")
    device.leave(controller)
    bid = p4r.MasterArbitrationUpdate(device_id=1, election_id=p4r.Uint128(low=1))
    with pytest.raises(RequestRefused) as caught:
        device.arbitrate(controller, bid)
    assert caught.value.code is Code.ABORTED
    assert device.arbitration.primary is None


def test_a_controller_that_does_not_read_is_bounded() -> None:
    """Packets beyond the limit are dropped and counted; arbitration is not."""
    controller = Controller("slow")
    packet = p4r.StreamMessageResponse(packet=p4r.PacketIn(payload=bytes(1 << 20)))
    for _ in range(300):
        controller.send_if_room(packet)
    assert controller.dropped > 40
    controller.send(p4r.StreamMessageResponse(arbitration=p4r.MasterArbitrationUpdate()))
    controller.end()
    messages = list(controller.messages())
    assert messages[-1].HasField("arbitration")
    controller.send_if_room(packet)
    controller.end()
    assert len(list(controller.messages())) == 1
