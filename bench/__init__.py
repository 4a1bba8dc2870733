"""Reproducible comparisons with peers and with the bare device: `make bench`."""
