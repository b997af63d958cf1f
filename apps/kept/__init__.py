"""Connections that are made once and kept: what a program must not notice a migration by."""
