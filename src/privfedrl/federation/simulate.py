"""A whole federation in one process: the embedded default, and what ``privfedrl train`` runs.

Guarantee: noise and keys come from the system's entropy and every release is charged in real
ledgers, exactly as in a deployment; ``seed`` reaches environments, the initial policy and the
dropout schedule only. What a deployment could not see (returns, episode lengths) goes to files
named *oracle, simulation only*, apart from released metrics.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from privfedrl.envs import make_vector_env
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.federation.fleet_experience import nominal_environment
from privfedrl.federation.participants import Participants
from privfedrl.federation.run_directory import (
    FORMAT,
    RunDirectory,
    RunHeader,
    check_same_run,
)
from privfedrl.federation.setup import policy_of
from privfedrl.federation.simulation import Progress, Run, Simulation
from privfedrl.plan import Plan
from privfedrl.primitives.random import (
    Entropy,
    is_deterministic,
    system_entropy,
)
from privfedrl.rollout import RolloutWorkers
from privfedrl.rollout.collect import check_policy_fits

__all__ = ["Progress", "Run", "Runtime", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Switches that cannot change privacy.

    Attributes:
        workers: processes for environments that are not vectorised, >= 1; None = one per core.
        rollout_timeout_s: seconds that one agent's batch may take in such a process, > 0; one that
            is late counts as a failed environment. None = no limit.
        torch_threads: of the local gradients. Policies are small: a second thread costs more in
            hand-over than it computes (measured: 16 s with one, 72 s with two on two cores).
    """

    workers: int | None = None
    rollout_timeout_s: float | None = None
    torch_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("workers", "torch_threads"):
            value = getattr(self, name)
            if value is None and name == "workers":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")
        limit = self.rollout_timeout_s
        if limit is not None and not 0 < limit < math.inf:
            raise ConfigurationError(f"rollout_timeout_s must be finite and > 0, got {limit!r}")


def simulate(
    plan: Plan,
    *,
    out: str | os.PathLike[str],
    seed: int | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
    runtime: Runtime | None = None,
    entropy: Entropy = system_entropy,
) -> Run:
    """Train the plan's fleet and leave everything about the run in ``out``.

    Args:
        plan: what to do; its promise is checked before anything starts.
        out: run directory; created, locked while the run lasts.
        seed: for environments, initial policy and dropout schedule; None draws one.
        resume: go on with the run that ``out`` holds, after its last completed round.
        progress: called after every round.
        runtime: speed only.
        entropy: the system's, or a ``DeterministicEntropy`` in a test: then the run promises
            nothing and its statement says so.
    Raises:
        ConfigurationError: the plan is infeasible, or ``out`` holds a run of another plan or seed.
        StorageError: ``out`` is in use, full, damaged, or holds a run and ``resume`` is False.
        BudgetExceeded: the ledger refuses a round; everything up to it is kept.
        RoundAborted: a round failed MAX_ATTEMPTS times.
        EnvironmentFault: no agent's environment works.
    """
    plan.check()
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigurationError(f"seed must lie in [0, 2^63), got {seed}")
    _check_environment(plan)  # before there is a directory, or a charge
    directory = RunDirectory(Path(out))
    with directory.locked():
        header = _header(directory, plan, seed=seed, resume=resume, entropy=entropy)
        with _simulation(directory, plan, header, runtime or Runtime(), entropy) as simulation:
            simulation.train(progress)
            return simulation.finish()


def _check_environment(plan: Plan) -> None:
    """The nominal environment can be made, and the plan's policy can see and act in it.

    Raises:
        ConfigurationError: it is unknown, or has other sizes than the policy.
        MissingExtraError: something that it needs is not installed.
        EnvironmentFault: its constructor raised.
    """
    env = make_vector_env(nominal_environment(plan), 1)
    try:
        check_policy_fits(policy_of(plan), env)
    finally:
        env.close()


def _header(
    directory: RunDirectory, plan: Plan, *, seed: int | None, resume: bool, entropy: Entropy
) -> RunHeader:
    header = directory.header()
    if header is None:
        if directory.restore() is not None:  # the header is written before any checkpoint
            raise StorageError(f"run directory {str(directory.path)!r} has lost its run.json")
        header = RunHeader(
            format=FORMAT,
            plan_digest=plan.digest.hex(),
            task_id=entropy(32).hex(),
            seed=secrets.randbelow(2**31) if seed is None else seed,
            deterministic=is_deterministic(entropy),
        )
        directory.create(header, plan)
        return header
    if not resume:
        raise StorageError(
            f"run directory {str(directory.path)!r} holds a run already; use resume to go on with "
            "it, or another directory"
        )
    check_same_run(header, plan, seed=seed)
    if header.deterministic != is_deterministic(entropy):
        raise ConfigurationError("a run must be resumed with the kind of entropy it began with")
    return header


@contextlib.contextmanager
def _simulation(
    directory: RunDirectory,
    plan: Plan,
    header: RunHeader,
    runtime: Runtime,
    entropy: Entropy,
) -> Iterator[Simulation]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_torch_threads(runtime.torch_threads))
        participants = stack.enter_context(Participants.open(directory, plan, entropy))
        count = (os.cpu_count() or 1) if runtime.workers is None else runtime.workers
        workers = stack.enter_context(RolloutWorkers(count, timeout_s=runtime.rollout_timeout_s))
        yield Simulation(directory, plan, header, participants, workers, entropy, stack)


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch's thread count for the block; the process had its own before and gets it back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
