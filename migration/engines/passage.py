"""One container of an engine's on its way; see runtime.Passage.

    prepare     the twin is made, its restore begun, which waits at its gate; the writable layer is copied
    checkpoint  the container is frozen, the engine writes its image, and leaves it frozen
    transfer    the image goes behind the gate, with the new addresses, and its processes marked as stopped
    restore     the gate is opened: the engine builds the copy, whose processes stand still
    release     the original is ended without a word to its peers; SIGCONT lets the copy run
    close       the original is removed, and the twin gets its name

Until the original is ended everything is undone by removing the twin and thawing the original, for which no engine is
needed. After that the way back is the engine's own restore of the original, which is kept until the copy was seen
to run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import tree
from ..deadline import Deadline
from ..errors import MemoryLost, MigrationError
from ..freezer import end_silently
from ..images import INVENTORY_IMAGE, has_locks
from ..journal import Note
from ..model import App, Host
from ..repair import reuse, reusing, silence, unrepair
from ..restarting import Restarts
from ..runtime import Releasing, nothing_to_release
from ..uncarried import STATE_FILE, Baseline, State
from ..volumes import COPIES, Mirror
from . import criuconf
from .calls import END_TIMEOUT, Call, kill, see_untraced, take
from .cgroup import freezer_of, moved_paths
from .driver import TWIN, Contained, Driver, EngineSilent
from .gate import Gate, is_stopped, streams_of
from .image import CGROUP_IMAGE, KEPT_DESCRIPTORS, KEPT_INVENTORY, copy, regrouped, stop_all
from .layer import Layer, unmount_left
from .log import Log
from .revival import Messages, revive
from .standing import Standing
from .surroundings import Surroundings, give_limits, limits_of

SHARED_MEMORY = Path("/dev/shm")
WHY = "an engine's containers have no other mode"


class EnginePassage:
    """A container between two sandboxes of its engine."""

    def __init__(
        self,
        driver: Driver,
        app: App,
        destination: Host,
        folder: Path,
        *,
        messages: Messages,
        deadline: Deadline,
    ) -> None:
        assert app.engine is not None
        self._driver, self._app, self._messages = driver, app, messages
        self._source, self._destination, self._deadline = app.host, destination, deadline
        self._pid = app.pid
        self._folder = folder
        self.images, self.moved = folder / "images", folder / "moved"
        self._twin: Contained | None = None
        self._gate: Gate | None = None
        self._call: Call | None = None
        self._dumping: Call | None = None
        self._restarts = Restarts(messages.core, messages.pstree)
        self._inventory = b""
        self._shared: Mirror | None = None
        self._standing = Standing()
        self._surroundings = Surroundings()
        self._limits: dict[str, dict[str, str]] = {}
        self._reusing: set[tuple[int, int]] = set()
        self._baseline = Baseline({})
        self._state = State()
        """What CRIU does not carry."""
        self._copy = self._bytes = 0
        self._is_frozen = self._is_complete = False
        self.has_run = False
        self.has_ended = False
        self._original = os.pidfd_open(self._pid)
        self._stack = contextlib.ExitStack()
        try:
            found = driver.find(app.engine.id)
            if found is None or found.pid != self._pid:
                raise MigrationError(
                    f"{driver.name} has no container of {app.name} that runs as process {self._pid}"
                )
            self._found = found
            self._get_ready(folder.name)
        except BaseException:
            self.close()
            raise

    def _get_ready(self, identity: str) -> None:
        """Make the twin, copy its files, and bring its restore as far as it comes without an image."""
        self._stack.enter_context(criuconf.in_force())
        self._baseline = Baseline.look(self._pid, self._source, self._destination)
        driver, found = self._driver, self._found
        driver.forget_checkpoint(found)
        self.images.symlink_to(driver.images_of(found))
        self._streams = streams_of(self._pid)
        self._twin = twin = driver.make_twin(found, self._source, self._destination, found.name + TWIN)
        self._layer = Layer(found, twin)
        self._layer.sync(fleeting=True)
        self._printed = Log(found, twin)
        self._gate = gate = Gate(driver.images_of(twin), identity, self._streams)
        self._call = call = Call(lambda: driver.restore(twin.id))
        if not gate.wait(call.is_over):
            call.wait(0.0)
            raise MigrationError(f"{driver.name}'s restore of {self._app.name} did not come to its image")
        self._layer.mounted()
        if (here := driver.shared_memory(found)) and (there := driver.shared_memory(twin)):
            self._shared = Mirror(here, there, SHARED_MEMORY)
            self._shared.sync(fleeting=True)

    # ---- what a transaction asks

    @property
    def parts(self) -> Sequence[EnginePassage]:
        """There is one image."""
        return (self,)

    @property
    def copies(self) -> Sequence[int]:
        """What has been restored."""
        return (self._copy,) if self._copy else ()

    def take_turn(self) -> None:
        """See who sleeps; an engine's commands have the priority that they have."""
        self._restarts.look(tree.processes(self._pid))

    def start_freeze(self) -> bool:
        """Stop nothing yet: a container is frozen in no time, and the rest of its checkpoint looks at its sockets."""
        return False

    def freeze(self, stopped: Callable[[], None] = lambda: None) -> None:
        """Freeze the container and let the engine write its image."""
        self.stop()
        stopped()
        self.dump()

    def stop(self) -> None:
        """Freeze the container."""
        self._is_frozen = True  # also if only half of it was done
        self._driver.freeze(self._found)
        self._restarts.stopped()

    def dump(self) -> None:
        """Let the engine write the image."""
        pids = tree.processes(self._pid)
        self._reusing = reusing(pids)
        self._surroundings, self._limits = Surroundings.of(self._pid), limits_of(self._pid)
        self._dumping = call = Call(lambda: self._driver.checkpoint(self._found))
        self._state = State.read(pids, self._baseline).without_library(self._driver.name)
        folder, mark = self._at_gate.place, self._at_gate.mark
        if not take(self._pid, call.is_over, folder, mark, self._deadline):
            call.wait(self._deadline.left())
            if not (self.images / INVENTORY_IMAGE).exists():
                raise MigrationError(f"{self._driver.name} has written no image of {self._app.name}")
            copy(self.images, folder)
        self.images = folder
        self._inventory = (folder / KEPT_INVENTORY).read_bytes()
        if json.loads((folder / KEPT_DESCRIPTORS).read_text()) != self._streams:
            raise MigrationError(
                f"the standard streams of {self._app.name} have changed while it got ready to move"
            )
        self._is_complete = True
        self._state.check(self._app.name)

    @property
    def has_locks(self) -> bool:
        """Say whether the image holds file locks."""
        return has_locks(self.images)

    def transfer(self, changed: Mapping[str, bytes]) -> int:
        """Put the image behind the gate, and copy what has changed of the files."""
        pids = tree.processes(self._pid)
        self._standing = Standing.read(pids, self.images, self._messages.core, self._messages.pstree)
        self._standing.write(self._folder)
        (self._folder / STATE_FILE).write_text(json.dumps(self._state.to_json()))
        restarted = self._restarts.change(self.images, pids)
        size = stop_all(self.images, {**changed, **self._regrouped(), **restarted}, self._messages.core)
        mapped = frozenset(tree.shared_maps(pids))
        files = self._layer.sync(mapped)
        if self._shared is not None:
            files += self._shared.sync(mapped)
        self._bytes = size + files + self._printed.size
        return self._bytes

    def restore(self, begun: Callable[[], None] = lambda: None) -> int:
        """Open the gate; return the copy's process, which stands still and of which the engine knows."""
        gate, call = self._at_gate, self._call
        assert call is not None
        if call.is_over():  # then CRIU may still build the copy, and the engine would never hear of it
            call.wait(0.0)
        gate.open(self._inventory)
        begun()
        if not gate.wait_for_end(self._deadline.left()):
            self._deadline.check()
        self._copy = gate.copy()
        if not self._copy:
            call.wait(END_TIMEOUT)
            raise MigrationError(f"{self._driver.name} has restored {self._app.name}, and it ended at once")
        # Its sockets could speak by now. Should it end before it runs, its peers are not to hear of it.
        copies = tree.processes(self._copy)
        silence(copies)
        self._state.give(copies, self._baseline.places, self._folder)
        found = self._surroundings.differences(Surroundings.of(self._copy), self._destination.name)
        self._state.warnings += [COPIES, *found]
        call.wait(self._deadline.left())
        # Not before: runc sets those that it was told.
        self._state.warnings += give_limits(self._limits, self._copy)
        self._restarts.write(self._app, self._copy, self._deadline)
        # By now the engine has written down all that the original has printed.
        if self._driver.appends_to_logs:
            self._printed.append()
        elif (lost := self._printed.say(self._copy, self._streams)) is not None:
            self._state.warnings.append(lost)
        return self._copy

    def end_source(self) -> None:
        """End the frozen original; its peers do not hear of it.

        A frozen process acts upon the signal at once (version 2) or when it is thawed, and runs nothing before. So each
        gets one: the end of the first would reach the others when they run already.
        """
        if not self._copy:  # there is only the image now
            self._see_image_written()
        pids = tree.processes(self._pid)
        freezer = freezer_of(self._pid)  # on version 2 a killed process is gone before it is thawed
        silence(pids)
        self.has_ended = True
        for pid in pids:
            kill(pid)
        freezer.thaw()
        self._is_frozen = False

    def resume(self, releasing: Releasing = nothing_to_release) -> None:
        """Let the copy run."""
        # One that was killed leaves its stop at once and lives for some time yet: its sockets must stay silent.
        if not is_stopped(self._copy):
            raise MigrationError(f"the copy of {self._app.name} has ended before it ran")
        copies = tree.processes(self._copy)
        unrepair(copies, probe=True)
        reuse(copies, self._reusing)
        self.has_run = True
        self._state.warnings += self._standing.let_go(self._copy)
        if self._twin is not None and self._app.engine is not None:
            self._app.engine.id = self._twin.id
        if not tree.wait_for_death(self._original, END_TIMEOUT):
            raise MigrationError(f"process {self._pid} was checkpointed but did not end")

    def complete(self) -> None:
        """Wait for nothing: memory does not come later."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the copy has lost."""
        return self._state.warnings

    def account(self) -> dict[str, Any]:
        """Say how the memory moved."""
        return {"mode": "stop", "via": "shared", "why": WHY, "bytes": self._bytes, "rounds": 0}

    def bury_source(self) -> None:
        """Wait for nothing: the original ended before the copy ran, and its sockets with it."""

    def back_out(self) -> None:
        """Destroy the copy, then thaw the original."""
        self._destroy_copy()
        self._see_image_written()
        if self._is_frozen:
            see_untraced(self._pid)
            with contextlib.suppress(OSError):
                unrepair(tree.processes(self._pid))
            self._driver.thaw(self._found)
            self._is_frozen = False
        if not tree.is_running(self._pid):
            raise MigrationError(f"process {self._pid} did not outlive the attempt")

    def revive(self, note: Note) -> int:
        """Let the engine restore the original from its image, unless it is still there."""
        if not self.has_ended and tree.is_running(self._pid):
            self.back_out()
            return self._pid
        self._destroy_copy()
        self._see_image_written()
        if not self._is_complete:
            raise MemoryLost(f"process {self._pid} ended before its image was complete")
        if not tree.wait_for_death(self._original, END_TIMEOUT):
            raise MigrationError(f"process {self._pid} was killed but did not end")
        assert self._app.engine is not None
        self._app.engine.id = self._found.id
        pid = revive(self._driver, self._found, self._source, self._messages, self._folder, note)
        self.has_run = False
        return pid

    def close(self) -> None:
        """Remove the original if the copy has taken its place, else the twin; raises EngineSilent if none answers."""
        if self._original >= 0:
            os.close(self._original)
            self._original = -1
        try:
            if self.has_run and self._twin is not None:
                self._arrive(self._twin)
            else:
                self._leave()
        finally:
            if self._gate is not None:
                self._gate.close()
            self._stack.close()

    # ---- inside

    def _regrouped(self) -> dict[str, bytes]:
        """Return the image of the control groups with the twin's, in which CRIU waits at the gate, if there is one."""
        groups = moved_paths(self._pid, self._at_gate.pid)
        image = self.images / CGROUP_IMAGE
        if not groups or not image.exists():
            return {}
        return {CGROUP_IMAGE: regrouped(image.read_bytes(), groups, self._messages.cgroup)}

    @property
    def _at_gate(self) -> Gate:
        assert self._gate is not None
        return self._gate

    def _see_image_written(self) -> None:
        """Wait until the engine is done with its checkpoint, of which CRIU's part may be enough to go on."""
        if self._dumping is not None:
            with contextlib.suppress(MigrationError):
                self._dumping.wait(END_TIMEOUT)

    def _arrive(self, twin: Contained) -> None:
        self._see_image_written()
        self._driver.remove(self._found.id)
        self._driver.rename(twin.id, self._found.user_name)
        self._driver.forget_checkpoint(twin)

    def _leave(self) -> None:
        self._destroy_copy()
        if self._twin is not None:
            twin, self._twin = self._twin, None
            try:
                self._driver.remove(twin.id)
            except EngineSilent:
                self._driver.debts.owe(twin.id)
                raise
            unmount_left(twin)
        if hasattr(self, "_found"):
            self._driver.forget_checkpoint(self._found)

    def _destroy_copy(self) -> None:
        """End CRIU at its gate, or what it has built, and wait until the engine has given up."""
        if self._gate is None:
            return
        if not self._gate.wait_for_end(0.0) if self._gate.pid else False:
            self._gate.end()
            self._gate.wait_for_end(END_TIMEOUT)
        end_silently(self._gate.half_built(), kill)
        if self._call is not None:
            with contextlib.suppress(MigrationError):
                self._call.wait(END_TIMEOUT)
        self._copy = 0
