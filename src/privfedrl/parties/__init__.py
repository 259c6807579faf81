"""Who takes part in a round, how they sign, and what each has already let out.

What both kinds of protection stand on: long-term identities and their registry, sets of registered
agents, signed frames of bounded size, and the durable record of single-use steps. It knows neither
masks nor ciphertexts.
"""

from privfedrl.parties.frames import Frame, Outgoing, Wire
from privfedrl.parties.identity import Identity, Registry, RegistryEntry
from privfedrl.parties.journal import Journal, MemoryJournal, SqliteJournal
from privfedrl.parties.members import Members
from privfedrl.parties.participation import Participation, check_participation

__all__ = [
    "Frame",
    "Identity",
    "Journal",
    "Members",
    "MemoryJournal",
    "Outgoing",
    "Participation",
    "Registry",
    "RegistryEntry",
    "SqliteJournal",
    "Wire",
    "check_participation",
]
