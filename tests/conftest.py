"""Fixtures of every test: no hub is asked, and hypothesis runs the same examples everywhere."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in list(os.environ):
    if name.startswith("KB_") and not name.startswith("KB_TEST_"):
        del os.environ[name]

settings.register_profile(
    "kb", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kb")
