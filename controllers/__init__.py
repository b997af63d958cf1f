"""The P4Runtime controller of the load balancer, its HTTP API, the migration service and the command `p4ferry`."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
