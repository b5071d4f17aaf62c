"""`python -m kb.migrations`: bring the database that the settings name to the newest revision."""

from __future__ import annotations

from kb.db import open_database
from kb.migrations import upgrade
from kb.settings import Settings


def main() -> None:
    """Every process does the same when it starts; this does it once, ahead of all of them."""
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    sessions = open_database(settings.sqlalchemy_url)
    try:
        upgrade(sessions.engine)
    finally:
        sessions.close()


if __name__ == "__main__":
    main()
