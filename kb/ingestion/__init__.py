"""One document: claim it, run its pipeline, replace its segments, record the outcome."""
