"""``python -m trueoracle``: the command line without its script."""

from trueoracle.cli.main import main

main()
