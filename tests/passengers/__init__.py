"""Servers as the distribution has them, as their own users, moved under load from their own clients."""
