"""Homomorphic aggregation: the coordinator adds ciphertexts, a key authority opens one sum a round.

    config -> context (public key) -> commit -> roster -> upload -> sealed sum -> opening -> receipt

Start with :class:`HEClient`, :class:`HEAggregator` and :class:`KeyAuthority`: bytes in, bytes out,
the same four verbs as pairwise masking and the same integers. ``docs/homomorphic.md`` says who can
see what. Importing this package loads nothing; TenSEAL is needed by agents and the authority only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privfedrl.he.aggregator import HEAggregator, HESum
    from privfedrl.he.agreement import read_config
    from privfedrl.he.auditor import HEAuditor
    from privfedrl.he.client import HEClient
    from privfedrl.he.frames import DecryptionReceipt, HEConfig
    from privfedrl.he.key_authority import KeyAuthority
    from privfedrl.he.parameter_sets import PARAMETER_SETS, ParameterSet
    from privfedrl.he.parameters import HEParameters
    from privfedrl.he.phases import (
        AbortCode,
        AggregatorPhase,
        AuditorPhase,
        AuthorityPhase,
        ClientPhase,
    )
    from privfedrl.he.transcript import HERecord, HETranscript
    from privfedrl.he.vault import LocalVault, Vault

__all__ = [
    "PARAMETER_SETS",
    "AbortCode",
    "AggregatorPhase",
    "AuditorPhase",
    "AuthorityPhase",
    "ClientPhase",
    "DecryptionReceipt",
    "HEAggregator",
    "HEAuditor",
    "HEClient",
    "HEConfig",
    "HEParameters",
    "HERecord",
    "HESum",
    "HETranscript",
    "KeyAuthority",
    "LocalVault",
    "ParameterSet",
    "Vault",
    "read_config",
]

_MODULES = {
    "aggregator": ("HEAggregator", "HESum"),
    "agreement": ("read_config",),
    "auditor": ("HEAuditor",),
    "client": ("HEClient",),
    "frames": ("DecryptionReceipt", "HEConfig"),
    "key_authority": ("KeyAuthority",),
    "parameter_sets": ("PARAMETER_SETS", "ParameterSet"),
    "parameters": ("HEParameters",),
    "phases": ("AbortCode", "AggregatorPhase", "AuditorPhase", "AuthorityPhase", "ClientPhase"),
    "transcript": ("HERecord", "HETranscript"),
    "vault": ("LocalVault", "Vault"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value  # later look-ups skip this function
    return value
