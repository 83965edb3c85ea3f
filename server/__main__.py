"""`python -m server` and the console script `em-inf`."""

from server.cli import main

if __name__ == "__main__":
    main()
