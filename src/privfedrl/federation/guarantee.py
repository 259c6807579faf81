"""From a run to its statement: every field worked out from the plan and the ledger, none assumed.

Guarantee: epsilon comes from the ledger's settled events, never from the plan's target; what is not
known is said as such, and then no epsilon is printed.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata

from privfedrl.errors import PrivacyError
from privfedrl.federation.adversaries import Adversary, adversaries
from privfedrl.federation.bounds import bounded_curve, bounded_epsilon, plan_cost
from privfedrl.federation.mechanism_texts import NO_NOISE, bound_text, mechanism_text
from privfedrl.federation.setup import RoundSetup
from privfedrl.federation.trust_texts import secure_aggregation, trust_model
from privfedrl.plan import AgentLearner
from privfedrl.privacy import (
    Adjacency,
    DpEvent,
    Ledger,
    Statement,
    Unit,
)
from privfedrl.privacy.claims import claim
from privfedrl.privacy.ledger import Account
from privfedrl.privacy.statement import UNSIGNED
from privfedrl.privacy.statement_fields import (
    AccountantField,
    AdjacencyField,
    AuditEvidenceField,
    CaveatsField,
    Claim,
    DeltaContextField,
    EpsilonField,
    IdentityField,
    ImplementationField,
    LedgerField,
    MechanismField,
    NotCoveredField,
    RandomnessField,
    Release,
    SamplingField,
    SideReleasesField,
    UnitField,
)

__all__ = ["environment_hash", "run_statement"]

_VALID_DAYS = 365
_NOT_COUNTED = "not applicable: how many persons the agents have is known to them alone"
_COMPARISON = "delta should be below one over the number of persons"


def run_statement(setup: RoundSetup, ledger: Ledger, *, deterministic: bool) -> Statement:
    """The 18 fields of a run whose releases are in ``ledger``.

    Args:
        setup: of the run's plan.
        ledger: the coordinator's; charges of other plans do not enter the claims.
        deterministic: True when a test generator stood in for entropy; the statement is then void.
    """
    plan = setup.plan
    today = datetime.datetime.now(tz=datetime.UTC).date()
    version = metadata.version("privfedrl")
    population = plan.fleet.agents
    if plan.unit is Unit.TRAJECTORY:
        population *= plan.episodes_per_agent(plan.federation.rounds)
    return Statement(
        identity=IdentityField(
            statement_id=f"{plan.name}/{ledger.head[:16]}",
            version="1",
            date=today.isoformat(),
            valid_until=(today + datetime.timedelta(days=_VALID_DAYS)).isoformat(),
            issuer="the operator of this run (simulation: one process)",
            signature=UNSIGNED,
        ),
        unit=_unit(setup),
        adjacency=AdjacencyField(relation=Adjacency.ADD_REMOVE.value, population_is_public=True),
        epsilon=EpsilonField(claims=_claims(setup, ledger) if setup.mechanism else NO_NOISE),
        delta_context=DeltaContextField(
            population=_NOT_COUNTED if plan.unit is Unit.PERSON else population,
            comparison=_COMPARISON
            if plan.unit is Unit.PERSON
            else f"delta x units = {plan.privacy.delta * population:.3g}",
        ),
        mechanism=_mechanism(setup),
        sampling=SamplingField(
            assumption="none: every registered agent is invited in every round (q = 1); no "
            "amplification is claimed",
            implemented_by="privfedrl.federation.coordinator.Coordinator.open_round",
        ),
        accountant=_accountant(setup, ledger, version),
        trust_model=trust_model(setup),
        releases=_releases(setup),
        side_releases=_side_releases(setup),
        not_covered=_not_covered(),
        randomness=RandomnessField(
            source="deterministic test generator" if deterministic else "operating system entropy",
            deterministic=deterministic,
            secure_sampler=not deterministic,
            floating_point="no floating-point noise is released: integers of a checked norm"
            + (" plus integer noise from an exact table sampler" if setup.mechanism else ""),
        ),
        implementation=ImplementationField(
            version=f"privfedrl {version}, Python {platform.python_version()}",
            commit="not applicable: identified by version and environment hash",
            lock_hash=environment_hash(),
            sbom_id="not applicable: no SBOM is published for this version",
        ),
        secure_aggregation=secure_aggregation(setup),
        audit_evidence=AuditEvidenceField(
            level="none yet: no statistical audit of this run; the proofs under audits/proofs and "
            "the test suite are the evidence",
            views="not applicable: no audit was run",
            canaries="not applicable: no canaries were planted",
            epsilon_lower="not applicable: no audit was run",
            confidence="not applicable: no audit was run",
            power="not applicable: no audit was run",
            date="not applicable: no audit was run",
        ),
        caveats=_caveats(setup, ledger, today),
        ledger=LedgerField(head=ledger.head, entries=len(ledger)),
    )


@cache
def environment_hash() -> str:
    """SHA-256 over name==version of everything installed: what a lock file would pin."""
    found = {
        f"{(distribution.metadata['Name'] or '').lower()}=={distribution.version}"
        for distribution in metadata.distributions()
    }
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def _claims(setup: RoundSetup, ledger: Ledger) -> tuple[Claim, ...]:
    plan = setup.plan
    held = ledger.reservations(plan_digest=plan.digest)
    if not held:
        raise PrivacyError("the ledger holds no release of this plan; there is nothing to state")
    account = ledger.account(plan.unit, setup.adversary)
    if account.regime == "adaptive":
        return _budget_claims(setup, account)
    events = [(one.charge.group, one.event) for one in held]
    main = _claim(setup, setup.adversary, events)
    if main is None:
        raise PrivacyError("the ledger holds releases for which no epsilon is proven")
    if plan.protection.kind == "none" and plan.privacy.distributed:
        return (main,)
    others = [
        _claim(setup, adversary.name, [*_as_seen_by(adversary, setup, events)])
        for adversary in adversaries(plan)[1:]
    ]
    return (main, *(claim for claim in others if claim is not None))


def _budget_claims(setup: RoundSetup, account: Account) -> tuple[Claim, ...]:
    """Several plans charged this account: its budget is stated, to all that know no more shares."""
    budget, plan = account.spent, setup.plan
    if account.budget is None or setup.mechanism is None or not math.isfinite(budget.epsilon):
        raise PrivacyError("the ledger holds releases for which no epsilon is proven")
    # the filter is about ideal noise; each plan's sampler is paid for here, as far as this one's
    paid = account.plans * setup.mechanism.sampler_delta(
        epsilon=budget.epsilon, shares=setup.shares_per_run
    )
    delta = budget.delta + paid
    return tuple(
        claim(
            adversary=adversary.name,
            epsilon=budget.epsilon,
            delta=delta,
            bound=budget.bound,
            replace_one=None,
            regime="adaptive",
            filter_order=budget.order,
            curve_kind="the lifetime budget of the ledger, over all its plans",
            curve=((delta, budget.epsilon),),
        )
        for adversary in adversaries(plan)
        if adversary.least(plan) >= plan.noise_floor
    )


def _as_seen_by(
    adversary: Adversary, setup: RoundSetup, events: Iterable[tuple[str, DpEvent]]
) -> Iterable[tuple[str, DpEvent]]:
    """The same releases for somebody who does not know another number of shares in them."""
    for group, event in events:
        survivors = setup.shares_in(event) + setup.plan.privacy.max_colluding
        known = {"all": 0, "all but one": 1}.get(adversary.shares)
        if setup.plan.several_sums:
            known = None  # of a part of the survivors only the least size is known
        shares = adversary.least(setup.plan) if known is None else survivors - known
        yield group, setup.event(shares)


def _claim(setup: RoundSetup, adversary: str, events: list[tuple[str, DpEvent]]) -> Claim | None:
    """The claim against one adversary; None where no finite epsilon is proven."""
    plan = setup.plan
    spent = plan_cost(plan, events, setup.accounted_delta)
    epsilon = bounded_epsilon(setup, events)
    if not math.isfinite(epsilon):
        return None
    return claim(
        adversary=adversary,
        epsilon=epsilon,
        delta=plan.privacy.delta,
        bound=bound_text(setup, spent.bound),
        replace_one=bounded_epsilon(setup, events, adjacency=Adjacency.REPLACE_ONE),
        regime="committed",
        curve_kind=f"{bound_text(setup, spent.bound)} of {mechanism_text(setup)[0]}",
        curve=bounded_curve(setup, events),
    )


def _unit(setup: RoundSetup) -> UnitField:
    plan = setup.plan
    if plan.unit is Unit.TRAJECTORY:
        uses = plan.releases_per_unit
        releases = "one release" if uses == 1 else f"at most {uses} releases"
        if setup.correlated is not None:
            releases = f"the sum of one round and so in {setup.correlated.bands} releases"
        return UnitField(
            unit="trajectory",
            max_contributions=f"one trajectory per unit in the whole run, in {releases}",
            enforced_by="each agent's ledger refuses a second reservation of the same batch; "
            "LocalTrainer refuses a used batch"
            if uses == 1
            else f"each agent's ledger refuses use {uses + 1} of a batch, after a crash too; "
            "HeldExperience and LocalTrainer count uses",
        )
    if plan.unit is Unit.PERSON:
        return UnitField(
            unit="person",
            max_contributions=f"{plan.privacy.max_trajectories_per_unit} trajectories in a round, "
            f"summed and then clipped, {plan.releases_per_unit} rounds; a subject id names one "
            "person at one agent",
            enforced_by="each agent's ParticipationRegister counts a participation before "
            "anything is computed; LocalTrainer drops surplus trajectories unread",
        )
    return UnitField(
        unit="agent",
        max_contributions=f"one clipped model delta per round, {plan.federation.rounds} rounds",
        enforced_by="each agent's journal spends (round, attempt) once; the ledger adds all rounds",
    )


def _mechanism(setup: RoundSetup) -> MechanismField:
    plan = setup.plan
    noisy = setup.mechanism is not None
    name, location, shares = mechanism_text(setup)
    return MechanismField(
        name=f"{name} on conditionally rounded integers" if noisy else name,
        noise_added=noisy,
        clip_norm=setup.total_clip,
        noise_multiplier=setup.noise_multiplier if noisy else NO_NOISE,
        noise_location=location,
        noise_shares=shares,
        dropout_tolerance=f"{plan.tolerated_dropouts} of {plan.fleet.agents} agents per "
        "round; fewer survivors abort the round without a sum",
    )


def _accountant(setup: RoundSetup, ledger: Ledger, version: str) -> AccountantField:
    plan = setup.plan
    held = ledger.reservations(plan_digest=plan.digest)
    others = _other_plans(setup, ledger)
    once = plan.unit is Unit.TRAJECTORY and plan.releases_per_unit == 1
    cap = ""
    if plan.unit is Unit.TRAJECTORY and not once:
        cap = f", of which one trajectory is in at most {plan.releases_per_unit}"
    if plan.unit is Unit.PERSON:
        cap = f", of which one person takes part in at most {plan.releases_per_unit}"
    if setup.correlated is not None:
        cap = (
            f"; not in parallel, since sums are mixed over {setup.correlated.bands} rounds: each "
            "trajectory is charged one event, in its own round, whose sensitivity is that of all "
            "the releases that it is in, and the costliest event is quoted"
        )
    return AccountantField(
        name="privfedrl.privacy.accountant: the least valid bound, which each claim names",
        version=version,
        numeric_error="double precision; the sampler's total variation (< 2^-100 for each sample) "
        "over all samples of the run is part of delta",
        rule="maximum over rounds" if once else "sum over participations",
        composed=(f"{len(held)} releases of this plan{cap}, unsettled ones at their worst case",),
        prior_spend=f"{others} releases of other plans in the same ledger"
        if others
        else "none: the ledger holds this plan alone",
        lifetime_budget=_lifetime_text(setup, ledger),
    )


def _other_plans(setup: RoundSetup, ledger: Ledger) -> int:
    """Releases in the ledger that are not of this plan."""
    return len(ledger.reservations()) - len(ledger.reservations(plan_digest=setup.plan.digest))


def _lifetime_text(setup: RoundSetup, ledger: Ledger) -> str:
    plan = setup.plan
    found = [
        one.budget
        for one in ledger.accounts()
        if (one.unit, one.adversary) == (plan.unit, setup.adversary)
    ]
    if setup.mechanism is None:
        return NO_NOISE
    if found and found[0] is not None:
        budget = found[0]
        return f"epsilon {budget.epsilon:g} at delta {budget.delta:g}, enforced at reservation"
    return (
        f"epsilon {plan.privacy.epsilon:g} at delta {plan.privacy.delta:g} for each trajectory, "
        "enforced at reservation"
    )


def _releases(setup: RoundSetup) -> tuple[Release, ...]:
    noised, without = ("noised ", "") if setup.mechanism else ("", ", without noise")
    gradients = "policy gradients"
    if setup.policy.critic_hidden is not None:
        gradients = "policy gradients and of a critic's, clipped apart"
    elif setup.policy.action == "q-values":
        gradients = "gradients of action values"
    what = f"{noised}mean of clipped {gradients}{without}, as a new policy"
    if setup.plan.unit is Unit.AGENT:
        what = f"{noised}mean of clipped model deltas{without}, as a new policy"
    if setup.step_codec is not None:
        what = (
            "mean of model deltas, each after local steps with noise of their own, as a new policy"
        )
    found = [Release(what=what, to_whom="everybody", how_often="every round")]
    release = setup.plan.privacy.mean_return
    if release is not None:
        found.append(
            Release(
                what=f"{noised}mean return clipped to [{release.low:g}, {release.high:g}]"
                f"{without}, one more coordinate of the same vector",
                to_whom="everybody",
                how_often="every round",
            )
        )
        if release.spread:
            found.append(
                Release(
                    what=f"{noised}mean square of the same{without}, for a standard deviation",
                    to_whom="everybody",
                    how_often="every round",
                )
            )
    if setup.plan.privacy.adaptive_clip is not None:
        found.append(
            Release(
                what=f"{noised}centred count of units that were not clipped{without}, as the next "
                "clip norm",
                to_whom="everybody",
                how_often="every round",
            )
        )
    return tuple(found)


def _side_releases(setup: RoundSetup) -> SideReleasesField:
    rewards = "not released"
    if setup.plan.privacy.mean_return:
        rewards = "only as the mean return" + (", noised" if setup.mechanism else ", without noise")
    return SideReleasesField(
        counts="public constants of the plan",
        norms="not released",
        rewards=rewards,
        losses="not released",
        survivor_sets="public; assumed not to depend on data",
        timing="not hidden: the time an agent needs for its rollouts is visible to the coordinator",
        hyper_parameter_search="not covered: choosing a plan by looking at earlier runs on the "
        "same data is not charged",
        early_stopping=_early_stopping(setup),
        normaliser_state=_normaliser_state(setup),
    )


def _inside_agents(setup: RoundSetup) -> AgentLearner | None:
    """How agents learn inside, where what they learn is clipped as a whole."""
    plan = setup.plan
    if plan.unit is not Unit.AGENT or plan.training.algorithm == "reinforce":
        return None
    return AgentLearner() if plan.training.learner is None else plan.training.learner


def _early_stopping(setup: RoundSetup) -> str:
    learner = _inside_agents(setup)
    text = "none: the number of rounds is fixed by the plan"
    if learner is None or learner.target_kl is None:
        return text
    return f"{text}; epochs inside an agent stop on its own data, before its delta is clipped"


def _normaliser_state(setup: RoundSetup) -> str:
    learner = _inside_agents(setup)
    kept = []
    if learner is not None and setup.plan.training.algorithm == "dqn":
        kept.append("a replay memory and a target network")
    elif learner is not None and learner.normalise_observations:
        kept.append("running means and deviations of observations")
    if learner is not None and learner.private_critic is not None:
        kept.append("a private critic")
    if learner is not None and not learner.reset_optimiser:
        kept.append("an optimiser's state")
    if not kept:
        return "none is kept"
    return f"kept inside the agent between rounds, not released: {', '.join(kept)}"


def _not_covered() -> NotCoveredField:
    return NotCoveredField(
        correlated_data="a unit that is correlated with others can be inferred from them",
        group_privacy="k units together lose up to k epsilon, at a larger delta",
        population_inference="what holds for the fleet as a whole is learned on purpose",
        poisoning="a malicious agent is bounded by its clip norm only if it clips; ranges are not "
        "proven",
        endpoint_compromise="whoever controls an agent sees its trajectories",
    )


def _caveats(setup: RoundSetup, ledger: Ledger, today: datetime.date) -> CaveatsField:
    items = [
        "A simulation ran all agents in one process; a deployment must run them apart.",
        "A participant's own view adds the actions it took: joint differential privacy.",
        "The wall time of rollouts depends on trajectories and is not protected.",
    ]
    if setup.plan.protection.kind == "none" and setup.plan.privacy.distributed:
        items.append("Without secure aggregation the claim holds against the public only.")
    elif setup.plan.protection.kind == "none" and setup.mechanism is not None:
        items.append(
            "Vectors were summed in the clear: the claims hold against those whom they name, and "
            "rest on whoever adds the noise."
        )
    if setup.plan.sparse:
        items.append(
            "Agents mask with some of the others only. That no smaller sum can be opened rests on "
            "a random order of the agents, with the failure probability of field 15, and against a "
            "malicious coordinator on an argument of this project that nobody else has reviewed "
            "(audits/proofs/sparse_graph.md)."
        )
    if setup.plan.protection.homomorphic:
        items.append(
            "The agents' ranges are not proved under encryption: a malicious agent can spoil a "
            "sum, and what shows is only a lane out of range."
        )
    if setup.plan.protection.readding == "none" and setup.plan.protection.homomorphic:
        items.append("Nobody re-adds: a lying coordinator can have a single update decrypted.")
    if setup.plan.protection.kind == "ckks":
        items.append(
            "CKKS is approximate: its decryption error depends on the key (IND-CPA-D). Sums are "
            "rounded to the grid before they leave the authority, under a key of one round, with "
            "the agents' noise in them; exactness is an estimate, not a proof. An agent that "
            "uploads a malformed ciphertext makes the sum tell the round's key to a coordinator "
            "that colludes with it, and nobody notices; BFV sums are checked for that."
        )
    if setup.mechanism is None:
        items.append("Control run: nothing is promised.")
    if setup.correlated is not None:
        items.append(
            "Noise is correlated over rounds: a round by itself carries more of it, and there is "
            f"no forward secrecy: whoever seizes the coordinator's memory learns the last "
            f"{setup.correlated.bands - 1} sums without noise. A memory replaced by an older copy "
            "is found out by the round in the state, or by a later round in the ledger; not where "
            "memory and state are put back together by the last release, whose sums are then mixed "
            "a second time, nor where the ledger is put back too."
        )
    if _other_plans(setup, ledger) and setup.plan.unit is not Unit.TRAJECTORY:
        items.append(
            "Several plans charged this ledger: the claims state its lifetime budget, not what was "
            "spent. The noise samplers of the other plans are taken to deviate as this plan's does."
        )
    expiry = (today + datetime.timedelta(days=_VALID_DAYS)).isoformat()
    return CaveatsField(items=tuple(items), expiry=expiry)
