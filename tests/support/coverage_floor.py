"""Compare the coverage with its floors: `python -m tests.support.coverage_floor`, as `make coverage` does.

The option `fail_under` of coverage has one floor for the sum of lines and branches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

REPORT = Path("build/coverage/report.json")
LINES_FLOOR_PERCENT = 95.0
BRANCHES_FLOOR_PERCENT = 90.0


def shares(totals: dict[str, int]) -> tuple[float, float]:
    """Return the percentages of covered lines and of covered branches."""
    return (
        100 * totals["covered_lines"] / totals["num_statements"],
        100 * totals["covered_branches"] / totals["num_branches"],
    )


if __name__ == "__main__":
    lines, branches = shares(json.loads(REPORT.read_text())["totals"])
    print(  # noqa: T201 - the result
        f"lines {lines:.2f} % (at least {LINES_FLOOR_PERCENT:g} %), "
        f"branches {branches:.2f} % (at least {BRANCHES_FLOOR_PERCENT:g} %)"
    )
    sys.exit(lines < LINES_FLOOR_PERCENT or branches < BRANCHES_FLOOR_PERCENT)
