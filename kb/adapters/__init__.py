"""One vendor per file; `kb.wiring` chooses."""
