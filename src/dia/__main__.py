"""`python -m dia` is the command `dia`."""

from .cli.main import main

if __name__ == "__main__":
    main()
