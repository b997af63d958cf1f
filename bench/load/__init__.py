"""Load generators, compiled when they are needed."""
