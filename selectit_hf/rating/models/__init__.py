"""Checkpoints: found, checked, and loaded onto devices."""
