"""Batch jobs: files of rows in, one JSON record for each row out."""
