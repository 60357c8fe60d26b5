"""`python -m fitcoach_tune`, as `torchrun -m` needs it."""

from fitcoach_tune.cli import main

main()
