"""``lvmsync --version``, beside ``python -c 'import typer'``."""

from __future__ import annotations

import sys

from tests.bench.common import LVMSYNC, alternate, report, seconds


def main(runs: int = 21) -> None:
    """Run and report."""
    ours, typer = alternate(
        runs,
        lambda: seconds(f"{LVMSYNC} --version > /dev/null"),
        lambda: seconds(f"{sys.executable} -c 'import typer'"),
    )
    report("start-up", [{"lvmsync_version_s": ours, "import_typer_s": typer, "ratio": ours / typer}])


if __name__ == "__main__":
    main()
