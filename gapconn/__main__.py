"""`python -m gapconn` is the command `gapconn`."""

from gapconn.cli import main

if __name__ == "__main__":
    main(prog_name="gapconn")
