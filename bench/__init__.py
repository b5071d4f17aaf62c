"""Benchmarks: each compares kb with the plain way in one run."""
