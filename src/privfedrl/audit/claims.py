"""The claims that can be audited from the outside, as a table that the command line reads.

Guarantee: a name in the table keeps its meaning; a stronger check gets another name.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["CLAIMS", "AuditClaim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditClaim:
    """One claim: what a pass shows, what it takes, and what it does not show."""

    name: str
    shows: str
    needs: str
    limits: str


CLAIMS: Final = MappingProxyType(
    {
        claim.name: claim
        for claim in (
            AuditClaim(
                name="secagg-transcript",
                shows=(
                    "every recorded round opened one sum over a survivor set that enough "
                    "registered and valid agents signed, under one task and one plan, and each "
                    "record follows the one before"
                ),
                needs="the transcripts in order, and the registry from a source of one's own",
                limits=(
                    "not what the sums contain, not whether the newest records were left out "
                    "(give --anchor), not how many agents collude"
                ),
            ),
        )
    }
)
"""{name: claim}, in the order in which they are listed."""
