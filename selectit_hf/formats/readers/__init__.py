"""Files read as they are: CSV, JSON, parquet and Arrow, and streams."""
