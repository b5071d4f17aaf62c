"""`python -m workers worker|beat ...`: what `kb worker` and `kb beat` start."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Run Celery's command line on our app; 1 and one line on stderr when it cannot start."""
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    from kb.errors import KBError

    try:
        from workers.app import app, configure_logging
    except (KBError, ValidationError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    configure_logging()  # Celery warns before it has its logging set up
    try:
        app.start(arguments)
    except (KBError, SQLAlchemyError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
