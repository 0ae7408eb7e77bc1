"""`python -m balora` is the command, for launchers that start a module on every device."""

from balora.cli.main import main

main()
