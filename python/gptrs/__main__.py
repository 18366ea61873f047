"""`python -m gptrs`: the command line."""

from gptrs.cli import main

if __name__ == "__main__":
    main()
