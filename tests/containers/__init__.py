"""Tests of images and checkpoint archives."""
