"""Custody of private keys: one module each, none knows another."""
