"""`python -m verim`: the same as the command `verim`."""

from verim.cli.main import main

if __name__ == "__main__":
    main()
