"""Writing a program's results into files that others read while it runs."""

from __future__ import annotations

import os


def replace(path: str, text: str) -> None:
    """Write a file so that no reader ever sees half of it; a device or pipe is written to, never replaced."""
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110,PTH113
        with open(path, "w") as file:  # noqa: PTH123
            file.write(text)
        return
    temporary = f"{path}.new"
    with open(temporary, "w") as file:  # noqa: PTH123
        file.write(text)
    os.replace(temporary, path)  # noqa: PTH105
