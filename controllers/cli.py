"""`p4ferry`: a client of the controller's HTTP API.

    p4ferry migrate echo h3      p4ferry migrations      p4ferry report m1
    p4ferry nodes | services | apps | connections | switches | events

Exit status: 0 if it was done, 1 if it was not (a migration that was not completed, a refusal), 2 for a wrong command
line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from rich.console import Console

from controllers import cli_views

DEFAULT_URL = "http://127.0.0.1:5000"
_LISTS = ("nodes", "services", "apps", "connections", "switches", "migrations")


class ClientError(Exception):
    """The API is not there, or refused; the message is one sentence."""


class Client:
    """The API, as far as the commands need it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)

    def get(self, path: str) -> Any:
        """Return a resource."""
        return self._request("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask for something."""
        return self._request("POST", path, json=body)

    def _request(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._http.request(method, path, **more)
            body = answer.json()
        except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as ex:
            raise ClientError(f"no p4ferry controller answers at {self._url}: {ex}") from ex
        except ValueError as ex:
            raise ClientError(f"what answers at {self._url} is not a p4ferry controller") from ex
        if answer.is_error:
            raise ClientError(
                body.get("error", answer.reason_phrase) if isinstance(body, dict) else answer.text
            )
        return body

    def events(self, after: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the controller's events as they come."""
        headers = {"Last-Event-ID": str(after)} if after is not None else {}
        try:
            with self._http.stream("GET", "/events", headers=headers, timeout=httpx.Timeout(30.0)) as answer:
                kind = ""
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        yield kind, json.loads(line.removeprefix("data: "))
        except httpx.TransportError as ex:
            raise ClientError(f"no p4ferry controller answers at {self._url}: {ex}") from ex


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(prog="p4ferry", description="Talk to a running p4ferry controller.")
    parser.add_argument(
        "--url", default=DEFAULT_URL, help="where the controller answers (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    migrate = commands.add_parser("migrate", help="move an app to a host, and wait until it is there")
    migrate.add_argument("app")
    migrate.add_argument("destination", metavar="host")
    report = commands.add_parser("report", help="show one migration")
    report.add_argument("id")
    for name in _LISTS:
        commands.add_parser(name, help=f"list {name}")
    commands.add_parser("events", help="follow what happens")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = make_parser().parse_args(argv)
    try:
        return run(arguments, Client(arguments.url), Console())
    except ClientError as ex:
        print(f"p4ferry: {ex}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def run(arguments: argparse.Namespace, client: Client, console: Console) -> int:
    """Run one parsed command."""
    if arguments.command == "migrate":
        return _migrate(arguments, client, console)
    if arguments.command == "events":
        for kind, data in client.events():
            print(
                json.dumps({"event": kind, **data}) if arguments.json else cli_views.event_line(kind, data),
                flush=True,
            )
        return 0
    if arguments.command == "report":
        return _show_report(client.get(f"/migrations/{arguments.id}"), arguments.json, console)
    found = client.get(f"/{arguments.command}")
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        listed = found["connections"] if arguments.command == "connections" else found
        console.print(cli_views.table(arguments.command, listed))
    return 0


def _migrate(arguments: argparse.Namespace, client: Client, console: Console) -> int:
    """Ask for a migration and follow it to its end."""
    asked = client.post("/migrations", {"app": arguments.app, "destination": arguments.destination})
    id = asked["id"]
    # 0: also what happened between the request and this one.
    for kind, data in client.events(after=0):
        if data.get("id") != id:
            continue
        if kind == "migration_progress" and not arguments.json:
            console.print(cli_views.event_line(kind, data))
        if kind in ("migration_ended", "migration_cancelled"):
            break
    return _show_report(client.get(f"/migrations/{id}"), arguments.json, console)


def _show_report(report: dict[str, Any], as_json: bool, console: Console) -> int:
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        console.print(cli_views.report(report))
    return 0 if report.get("outcome") == "completed" else 1


if __name__ == "__main__":
    sys.exit(main())
