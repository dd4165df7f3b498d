"""`python -m rollout` is the console script."""

from rollout.cli import main

main()
