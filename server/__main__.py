"""`python -m server`: what `em-inf serve` hands over to."""

from em_inf.server.cli import main

if __name__ == "__main__":
    main()
