"""Programs that get moved, and the clients that measure whether they noticed."""
