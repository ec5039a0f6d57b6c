"""`python -m strop.flows` is `strop`."""

from strop.flows.cli import main

if __name__ == "__main__":
    main()
