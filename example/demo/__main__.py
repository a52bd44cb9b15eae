"""Run the demo."""

import sys

from .options import parse
from .run import run

if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
