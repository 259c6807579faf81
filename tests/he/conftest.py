"""One key pair per parameter set for the whole session: key generation is not what is tested."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from privfedrl.he.lattice import Decryptor, Encryptor
from privfedrl.he.parameter_sets import ParameterSet

Pair = tuple[Decryptor, Encryptor]


@pytest.fixture(scope="session")
def named() -> Callable[[str], ParameterSet]:
    """The frozen parameter set of a name."""
    return ParameterSet.named


@pytest.fixture(scope="session")
def pair() -> Callable[[str], Pair]:
    """The session's Decryptor of a set, and an Encryptor under its public key."""

    @cache
    def make(name: str) -> Pair:
        parameters = ParameterSet.named(name)
        decryptor = Decryptor(parameters)
        return decryptor, Encryptor(parameters, decryptor.public_key)

    return make
