"""The trust check: defects planted in copies of rows, and how well they are told apart."""
