"""Audits that anybody can run with public records and an own copy of the registry.

Guarantee: nothing here needs a secret, torch or the learning side, and nothing writes.
"""

from privfedrl.audit.claims import CLAIMS, AuditClaim
from privfedrl.audit.homomorphic_uploads import verify_uploads
from privfedrl.audit.secagg_transcript import CheckedRound, TranscriptReport, verify_transcripts

__all__ = [
    "CLAIMS",
    "AuditClaim",
    "CheckedRound",
    "TranscriptReport",
    "verify_transcripts",
    "verify_uploads",
]
