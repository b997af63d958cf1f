"""The P4Runtime controller of the load balancer, its HTTP API, and the migration service."""
