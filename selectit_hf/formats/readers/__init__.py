"""Readers of CSV, JSON, parquet and Arrow files, and of streams."""
