"""Transports: one module per server dialect, each found by entry point."""
