"""All direct observations of SecAgg+: what the documentation says, what was seen.

Guarantee: every number in the report is measured by the function that bears its name, on the
installed version, with Flower's own objects; nothing is copied from another source. Importing a
module of ``observed_*`` puts its observations on the list, in the order of the report.
"""

from __future__ import annotations

import observed_clients  # noqa: F401 - fills the list
import observed_masks  # noqa: F401 - fills the list
import observed_messages  # noqa: F401 - fills the list
import observed_sums  # noqa: F401 - fills the list
import observed_traces  # noqa: F401 - fills the list
from observation import ISSUE, OBSERVATIONS, Observation

__all__ = ["ISSUE", "OBSERVATIONS", "Observation", "observe"]


def observe() -> list[Observation]:
    """All of them, in order."""
    return [run() for run in OBSERVATIONS.values()]
