"""The command line: words in, words out. Only here anything is printed, and only from here the program exits."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    from lvmsync.cli.classic import run

    sys.exit(run(sys.argv[1:]))
