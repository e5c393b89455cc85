"""`python -m capstan_cli` is `capstan`."""

from capstan_cli.main import main

main()
