"""``python -m trueoracle``: the command line without its script."""

import sys

# Python puts the working folder first: nothing in it is to stand in for what is installed.
sys.path.append(sys.path.pop(0))

from trueoracle.cli.main import main

main()
