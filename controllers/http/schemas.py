"""The bodies of requests. Fields are checked by their shape here, and by their meaning in `controllers.config`."""

from __future__ import annotations

from pydantic import BaseModel, Field, model_validator

Number = int | str
"""The original's clients write numbers as strings."""


class NodeBody(BaseModel):
    """What every request about a node may say; without a service, the default one is meant."""

    service: str | None = Field(None, description="name of the service; the default one if absent")


class InsertNode(NodeBody):
    """Put a node into the pool."""

    ipv4: str = Field(examples=["10.0.3.3"])
    dmac: str = Field(examples=["08:00:00:00:03:03"])
    eport: Number = Field(examples=["3"])
    weight: Number = 1
    port: Number | None = Field(None, description="L4 port of the backend; the service's if absent")


class UpdateNode(NodeBody):
    """Send a node's connections, old and new, to another address."""

    old_ipv4: str = Field(examples=["10.0.2.2"])
    new_ipv4: str = Field(examples=["10.0.3.3"])
    dmac: str = Field(examples=["08:00:00:00:03:03"])
    eport: Number = Field(examples=["3"])
    port: Number | None = None


class DeleteNode(NodeBody):
    """Take a node out of the pool; its connections stay until they end. A draining node stays listed until then."""

    ipv4: str = Field(examples=["10.0.2.2"])
    drain: bool = False


class NewService(BaseModel):
    """Let a VIP answer."""

    name: str = Field(min_length=1, max_length=64)
    address: str = Field(examples=["10.0.0.100"])
    port: Number = Field(examples=[7000])
    protocol: str = Field("tcp", pattern="^(tcp|udp)$")


class NewMigration(BaseModel):
    """Move an app to a host."""

    app: str | None = Field(None, examples=["echo"])
    apps: list[str] | None = Field(
        None,
        min_length=1,
        description="instead of app: several that move together",
        examples=[["redis", "app"]],
    )
    destination: str = Field(examples=["h3"])
    mode: str | None = Field(
        None, description="when memory moves: stop, lazy, pre or auto", examples=["auto"]
    )
    transfer: str | None = Field(None, description="where: network or shared", examples=["network"])
    pause_budget: float | None = Field(
        None,
        description="seconds for which mode auto may stop the app rather than risk it (lazy)",
        examples=[1.0],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> NewMigration:
        if (self.app is None) == (self.apps is None):
            raise ValueError("name the app, or the apps that move together")
        return self

    @property
    def name(self) -> str:
        """What moves, as one word."""
        return self.app if self.app is not None else ",".join(self.apps or ())


class Success(BaseModel):
    """It is done."""

    status: str = "success"


class Error(BaseModel):
    """It could not be done, and nothing has changed."""

    error: str
