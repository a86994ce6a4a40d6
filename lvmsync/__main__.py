"""``python -m lvmsync``."""

from lvmsync.cli import main

if __name__ == "__main__":
    main()
