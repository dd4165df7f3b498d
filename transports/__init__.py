"""Transports: one module or folder per server dialect, each found by entry point."""

from rollout.moved import install

install()
