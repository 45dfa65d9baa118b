"""`python -m sequoia`: the same as the command `sequoia`."""

from sequoia.cli import main

if __name__ == "__main__":
    main()
