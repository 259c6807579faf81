"""Adding uploads: what the aggregator does, and whoever re-adds does again.

Guarantee: :meth:`UploadSum.take` adds each roster member's committed ciphertexts once, or raises
and changes nothing; the sum is a function of the set of contributors alone.
"""

from __future__ import annotations

import numpy as np

from privfedrl.errors import RemoteProtocolError
from privfedrl.he.agreement import FixedRoster
from privfedrl.he.frames import Upload
from privfedrl.he.parameters import HEParameters
from privfedrl.he.residues import add_into, pack, unpack
from privfedrl.parties.frames import Frame
from privfedrl.parties.identity import Registry
from privfedrl.parties.members import Members

__all__ = ["UploadSum"]


class UploadSum:
    """One accumulator; ciphertexts are added one by one and not kept.

    Args:
        roster: who may contribute what.
    """

    def __init__(self, parameters: HEParameters, roster: FixedRoster, registry: Registry) -> None:
        self._parameters, self._roster, self._registry = parameters, roster, registry
        chosen = parameters.parameter_set
        shape = parameters.ciphertexts, 2, len(chosen.sent_primes), chosen.degree
        self._total = np.zeros(shape, dtype=np.uint64)
        self._names: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """Whose ciphertexts are in the sum."""
        return frozenset(self._names)

    @property
    def contributors(self) -> Members:
        """The same as a set of registered agents."""
        indices = map(self._registry.index_of, self._names)
        return Members.of(indices, len(self._registry.agents))

    def take(self, frame: Frame) -> None:
        """Add one verified upload.

        Raises:
            RemoteProtocolError: it is for another roster, from a stranger, a second one, not what
                was committed to, or no ciphertexts of these parameters. Nothing is added.
        """
        message: Upload = frame.message
        name, chosen = message.sender, self._parameters.parameter_set
        if message.roster != self._roster.digest:
            raise RemoteProtocolError("the upload is for another roster")
        if name not in self._roster.commitments:
            raise RemoteProtocolError(f"{name} is not in the roster")
        if name in self._names:
            raise RemoteProtocolError(f"{name} has contributed already")
        if message.commitment != self._roster.commitments[name]:
            raise RemoteProtocolError(f"{name} uploaded something else than it committed to")
        residues = unpack(
            frame.attachment, chosen.sent_primes, chosen.degree, self._parameters.ciphertexts
        )
        add_into(self._total, residues, chosen.sent_primes)
        self._names.add(name)

    def ciphertexts(self) -> bytes:
        """The packed sum."""
        return pack(self._total, self._parameters.parameter_set.sent_primes)
