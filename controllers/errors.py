"""What the controller answers with when it cannot do what was asked.

ControllerError            base; `status` is the HTTP status that the API answers with
  +-- InvalidRequest       400: a value is missing or malformed
  |     +-- ConfigError    the same, in a configuration file
  +-- NotFound             404: nothing of that name or address
  +-- Conflict             409: it exists already, or its state forbids this
  +-- SwitchError          502: a switch is not there, or refused
        +-- SwitchNotReady     not connected, or not yet set up
        +-- NotPrimary         another controller is in charge of it
        +-- WriteRefused       it answered a write with errors
        +-- BarrierTimeout     it did not give a barrier back in time

Every message is one clear sentence that names the offender.
"""

from __future__ import annotations


class ControllerError(Exception):
    """Base of everything that a caller may have to show to a user."""

    status = 500


class InvalidRequest(ControllerError):
    """A value is missing or malformed."""

    status = 400


class ConfigError(InvalidRequest):
    """A configuration file cannot be used."""


class NotFound(ControllerError):
    """Nothing of that name or address is known."""

    status = 404


class Conflict(ControllerError):
    """It exists already, or its state forbids what was asked."""

    status = 409


class SwitchError(ControllerError):
    """A switch is not there, or refused."""

    status = 502


class SwitchNotReady(SwitchError):
    """The switch is not connected, or its tables are not yet set up."""


class NotPrimary(SwitchError):
    """Another controller is in charge of the switch."""


class WriteRefused(SwitchError):
    """The switch answered a write with errors; what had been written was taken back."""


class BarrierTimeout(SwitchError):
    """The switch did not give a barrier back in time."""
