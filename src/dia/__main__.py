"""`python -m dia` is the command `dia`."""

from .apps.cli import main

if __name__ == "__main__":
    main()
