"""`p4ferry`: a client of the controller's HTTP API.

    p4ferry migrate echo h3      p4ferry migrations      p4ferry report m1
    p4ferry migrate echo h3 --no-wait                    p4ferry cancel m1      p4ferry trace m1
    p4ferry nodes | services | apps | connections | switches | events
    p4ferry checkpoint build | push | pull | import | restore …     (needs no controller; containers/archive)

`migrate` shows the steps until the end; Ctrl-C cancels the migration. Exit status: 0 if it was done, 1 if it was not (a
migration that was not completed, a refusal), 2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

import httpx
from rich.console import Console

from containers.archive import commands as checkpoints
from containers.errors import ContainersError
from controllers import cli_views
from controllers.progress import Progress
from migration.transfer.modes import Mode, Via

DEFAULT_URL = "http://127.0.0.1:5000"
INTERRUPTED = 130  # as a shell reports SIGINT
_POLL_S = 0.05
_LISTS = ("nodes", "services", "apps", "connections", "switches", "migrations")


class ClientError(Exception):
    """The API is not there, or refused; the message is one sentence."""


class Event(NamedTuple):
    """What the controller tells; `number` is where to go on from."""

    number: int
    kind: str
    data: dict[str, Any]


class Client:
    """The API, as far as the commands need it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)

    def get(self, path: str) -> Any:
        """Return a resource."""
        return self._request("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask for something."""
        return self._request("POST", path, json=body)

    def delete(self, path: str) -> Any:
        """Take something back."""
        return self._request("DELETE", path)

    def text(self, path: str) -> str:
        """Return a resource that is plain text."""
        try:
            answer = self._http.get(path)
        except httpx.TransportError as ex:
            raise self._nobody(ex) from ex
        if answer.is_error:
            self._body(answer)
        return answer.text

    def _nobody(self, ex: Exception) -> ClientError:
        return ClientError(f"no p4ferry controller answers at {self.url}: {ex}")

    def _request(self, method: str, path: str, **more: Any) -> Any:
        try:
            return self._body(self._http.request(method, path, **more))
        except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as ex:
            raise self._nobody(ex) from ex

    def _body(self, answer: httpx.Response) -> Any:
        try:
            body = answer.json()
        except ValueError as ex:
            raise ClientError(f"what answers at {self.url} is not a p4ferry controller") from ex
        if answer.is_error:
            raise ClientError(
                body.get("error", answer.reason_phrase) if isinstance(body, dict) else answer.text
            )
        return body

    def events(self, after: int | None = None) -> Iterator[Event]:
        """Yield the controller's events as they come; goes on where the connection was lost, if it was."""
        last = after
        while True:
            before = last
            try:
                for event in self._stream(last):
                    last = event.number
                    yield event
                return
            except httpx.TransportError as ex:
                if isinstance(ex, httpx.ConnectError) or last == before:
                    raise self._nobody(ex) from ex

    def _stream(self, after: int | None) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(after)} if after is not None else {}
        number, kind = 0, ""
        with self._http.stream("GET", "/events", headers=headers, timeout=httpx.Timeout(30.0)) as answer:
            for line in answer.iter_lines():
                key, _, value = line.partition(": ")
                if key == "id":
                    number = int(value)
                elif key == "event":
                    kind = value
                elif key == "data":
                    yield Event(number, kind, json.loads(value))


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(prog="p4ferry", description="Talk to a running p4ferry controller.")
    parser.add_argument(
        "--url", default=DEFAULT_URL, help="where the controller answers (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    migrate = commands.add_parser("migrate", help="move an app to a host, and wait until it is there")
    migrate.add_argument("app", nargs="+", help="several move together")
    migrate.add_argument("destination", metavar="host")
    migrate.add_argument("--mode", choices=[m.value for m in Mode], help="when memory moves")
    migrate.add_argument("--transfer", choices=[v.value for v in Via], help="where memory moves")
    migrate.add_argument(
        "--pause-budget", metavar="SECONDS", type=float, help="for how long mode auto may stop the app"
    )
    migrate.add_argument("--no-wait", action="store_true", help="only ask for it, and print its id")
    for name, what in (
        ("report", "show one migration"),
        ("cancel", "take a migration back, if it is not too late"),
        ("trace", "print what caused what in a migration, for ShiViz"),
    ):
        commands.add_parser(name, help=what).add_argument("id")
    for name in _LISTS:
        commands.add_parser(name, help=f"list {name}")
    events = commands.add_parser("events", help="follow what happens")
    events.add_argument(
        "--after", type=int, metavar="N", help="begin behind event N; 0: with what is remembered"
    )
    checkpoints.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = make_parser().parse_args(argv)
    try:
        if arguments.command == "checkpoint":
            return checkpoints.run(arguments)
        return run(arguments, Client(arguments.url), Console())
    except (ClientError, ContainersError) as ex:
        print(f"p4ferry: {ex}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def run(arguments: argparse.Namespace, client: Client, console: Console) -> int:
    """Run one parsed command."""
    if arguments.command == "migrate":
        return _migrate(arguments, client, console)
    if arguments.command == "events":
        return _events(arguments, client)
    if arguments.command == "report":
        return _show_report(client.get(f"/migrations/{arguments.id}"), arguments.json, console)
    if arguments.command == "cancel":
        return _cancel(arguments, client, console)
    if arguments.command == "trace":
        print(client.text(f"/migrations/{arguments.id}/trace"), end="")
        return 0
    found = client.get(f"/{arguments.command}")
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        listed = found["connections"] if arguments.command == "connections" else found
        console.print(cli_views.table(arguments.command, listed))
    return 0


def _events(arguments: argparse.Namespace, client: Client) -> int:
    for number, kind, data in client.events(arguments.after):
        if arguments.json:
            print(json.dumps({"number": number, "event": kind, **data}), flush=True)
        else:
            print(cli_views.event_line(kind, data), flush=True)
    return 0


def _migrate(arguments: argparse.Namespace, client: Client, console: Console) -> int:
    """Ask for a migration and follow it to its end, unless that is not wanted."""
    body = {name: getattr(arguments, name) for name in ("destination", "mode", "transfer", "pause_budget")}
    body |= {"app": arguments.app[0]} if len(arguments.app) == 1 else {"apps": arguments.app}
    body = {name: value for name, value in body.items() if value is not None}
    if arguments.no_wait:
        print(client.post("/migrations", body)["id"])
        return 0
    if arguments.json:
        console = Console(quiet=True)
    with _CancelOnCtrlC(Client(client.url)) as ctrl_c:
        id = client.post("/migrations", body)["id"]
        with Progress(console, f"{id}: {','.join(arguments.app)} to {arguments.destination}") as progress:
            progress.begin()
            ctrl_c.cancels(id, progress.say)
            _follow(client, id, progress)
    status = _show_report(client.get(f"/migrations/{id}"), arguments.json, console)
    return INTERRUPTED if ctrl_c.was_pressed else status


def _follow(client: Client, id: str, progress: Progress) -> None:
    """Show a migration's steps until it is over."""
    for event in client.events(0):  # from the first: some came between the request and this one
        if event.data.get("id") != id:
            continue
        if event.kind == "migration_progress":
            progress.show(event.data)
        elif event.kind == "migration_ended":
            return


class _CancelOnCtrlC:
    """A context manager in which SIGINT takes a migration back instead of raising KeyboardInterrupt.

    An exception that comes out of the middle of the HTTP library may be lost there or leave its locks taken, so that
    the command hangs. The signal only wakes a thread, which asks with a client of its own.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pressed: queue.SimpleQueue[bool] = queue.SimpleQueue()  # put() may be in a handler
        self._thread: threading.Thread | None = None
        self.was_pressed = False

    def __enter__(self) -> _CancelOnCtrlC:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        self.was_pressed = True
        self._pressed.put(True)

    def cancels(self, id: str, say: Callable[[str], None]) -> None:
        """From now on, and for what was pressed before, cancel migration `id` and say what came of it."""

        def work() -> None:
            while self._pressed.get():
                try:
                    self._client.delete(f"/migrations/{id}")
                    say(f"cancelling {id}")
                except ClientError as ex:
                    say(str(ex))

        self._thread = threading.Thread(target=work, name="ctrl-c", daemon=True)
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        self._pressed.put(False)
        if self._thread is not None:
            self._thread.join()


def _cancel(arguments: argparse.Namespace, client: Client, console: Console) -> int:
    """Take a migration back, and wait until it has."""
    report = client.delete(f"/migrations/{arguments.id}")
    while report["outcome"] is None:
        time.sleep(_POLL_S)
        report = client.get(f"/migrations/{arguments.id}")
    _show_report(report, arguments.json, console)
    return 0 if report["outcome"] == "rolled_back" else 1


def _show_report(report: dict[str, Any], as_json: bool, console: Console) -> int:
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        console.print(cli_views.report(report))
    return 0 if report.get("outcome") == "completed" else 1


if __name__ == "__main__":
    sys.exit(main())
