"""Hand-written yardsticks."""
