"""`python -m workflows` is the `millrace` command."""

from workflows.cli import main

if __name__ == "__main__":
    main()
