"""`python -m tests.fidelity --ledger` writes docs/fidelity.md; without the option it is printed."""

from __future__ import annotations

import argparse

from tests.fidelity.ledger import LEDGER, text


def main() -> None:
    """Do what was asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    parser.add_argument("--ledger", action="store_true", help=f"write {LEDGER.name}")
    if parser.parse_args().ledger:
        LEDGER.write_text(text())
    else:
        print(text(), end="")


if __name__ == "__main__":
    main()
