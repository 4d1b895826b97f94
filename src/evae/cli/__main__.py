"""`python -m evae.cli`, the same as `evae`."""

from evae.cli import main

main()
