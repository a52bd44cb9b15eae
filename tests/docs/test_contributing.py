"""The example test of CONTRIBUTING.md, collected and executed here."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = ROOT / "CONTRIBUTING.md"

# pytest collects the test functions that the examples define.
for found in re.finditer(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
    exec(compile(found[1], PAGE.name, "exec"))
