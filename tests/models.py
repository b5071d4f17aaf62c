"""Where tests find exported models: one export serves all tests and all runs."""

import os
from pathlib import Path


def model_cache() -> Path:
    """`KB_TEST_CACHE`, or a directory beside pytest's own cache; survives from run to run."""
    default = Path(__file__).parents[1] / ".pytest_cache" / "kb-models"
    return Path(os.environ.get("KB_TEST_CACHE", default))
