"""`python -m smdt.cli`: the command `smdt` where it is not on the path."""

from smdt.cli import main

if __name__ == "__main__":
    main()
