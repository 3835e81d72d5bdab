"""Runs what receipts and batch records tell of again, and compares."""
