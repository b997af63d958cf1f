"""All passengers."""

from __future__ import annotations

from .runtimes import GO, JAVA
from .servers import SERVERS
from .sshd import SSHD

PASSENGERS = (*SERVERS, SSHD, GO, JAVA)
