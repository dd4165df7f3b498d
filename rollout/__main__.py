"""`python -m rollout` is the console script."""

from rollout.cli.app import main

main()
