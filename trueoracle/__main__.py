"""``python -m trueoracle``: the command line without its script."""

import sys

# Python searches the working folder first; nothing in it may shadow an installed package.
sys.path.append(sys.path.pop(0))

from trueoracle.cli.main import main

main()
