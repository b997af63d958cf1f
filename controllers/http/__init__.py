"""The controller's HTTP API: `schemas` (bodies), `app` (routes), `server` (uvicorn on the controller's loop)."""
