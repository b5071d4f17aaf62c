"""`kb beat`: the clock of the service size."""

from __future__ import annotations

import click

from kb.cli.client import load_settings
from kb.cli.options import Target, examples, target_options
from kb.cli.worker import become


@click.command(epilog=examples("kb beat"))
@target_options(network=False)
@click.pass_obj
def beat(target: Target) -> None:
    """Ring for the periodic work: lost messages, retries, dead workers, old records.

    One is enough; a second does no harm. It keeps no state.
    """
    load_settings(target)  # a mistake in them is told in one line
    become(target, "beat", [])
