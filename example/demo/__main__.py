"""Run the demo."""

import sys

from example.demo.options import parse
from example.demo.run import run

if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
