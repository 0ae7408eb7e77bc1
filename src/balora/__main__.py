"""Run the command as `python -m balora`, for launchers that start a module on every device."""

from balora.cli.main import main

main()
