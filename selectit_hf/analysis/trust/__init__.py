"""The trust check: defects are planted in copies of rows; does a score notice them?"""
