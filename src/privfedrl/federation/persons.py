"""Who may take part in a round when the unit of privacy is a person.

Guarantee: a person's trajectories reach no computation before the agent has durably counted this
participation, and none that would exceed the plan's cap does. An attempt that is aborted counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from privfedrl.errors import ConfigurationError
from privfedrl.federation.setup import RoundSetup
from privfedrl.plan import Plan
from privfedrl.privacy import ParticipationRegister, Unit

__all__ = ["Admission", "admission", "check_participation"]

# names in order of first appearance -> those that may take part
Admission = Callable[[Sequence[str]], frozenset[str]]


def check_participation(plan: Plan, register: ParticipationRegister | None) -> None:
    """Unit person needs a register; any other unit has no use for one."""
    if (plan.unit is Unit.PERSON) == (register is not None):
        return
    expected = "a ParticipationRegister" if plan.unit is Unit.PERSON else "None"
    raise ConfigurationError(
        f"participation must be {expected} for unit {plan.unit.value!r}, got "
        f"{type(register).__name__}"
    )


def admission(
    setup: RoundSetup, register: ParticipationRegister | None, release_id: str
) -> Admission | None:
    """The rule for one attempt of one round; None where no person is counted."""
    if register is None:
        return None
    plan = setup.plan

    def admit(subjects: Sequence[str]) -> frozenset[str]:
        return register.admit(plan.digest, release_id, subjects, cap=plan.releases_per_unit)

    return admit
