"""Worker processes that roll slow environments out, one agent's batch each.

Guarantee: the same generator state gives the same trajectories as in this process; an environment
that raises, hangs or takes its process down costs that agent its batch and nobody else anything.

Processes are spawned, never forked (threads and locks of the parent stay behind). As always with
spawned processes, a script that uses them needs an ``if __name__ == "__main__"`` guard. A process
says when it has started: one that never does is a mistake of the caller's, not of an environment.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec, VectorEnv, make_vector_env
from privfedrl.errors import (
    ConfigurationError,
    EnvironmentFault,
    LocalProtocolError,
    MissingExtraError,
    PrivfedrlError,
)
from privfedrl.rollout.collect import collect
from privfedrl.rollout.mixture import Guide
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch

__all__ = ["RolloutWorkers", "in_process_of_its_own"]

_JOIN_TIMEOUT_S = 5.0
# a new interpreter imports numpy and this library; a busy machine takes its time
_START_TIMEOUT_S = 120.0
_STARTED = "started"
# rows of environments a worker keeps between jobs: a whole simulated fleet of light ones, and half
# a gigabyte of the heaviest here (MuJoCo, 1 MB a row)
_MAX_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Everything one agent's batch depends on."""

    policy: MlpPolicy
    parameters: NDArray[np.floating]
    spec: EnvSpec
    num_trajectories: int
    horizon: int
    rng: np.random.Generator
    exploration: float
    guide: Guide | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A batch with the generator's new state, or the kind and text of the error."""

    batch: TrajectoryBatch | None = None
    rng_state: Any = None
    error: str = ""
    message: str = ""


class RolloutWorkers:
    """A reusable pool of rollout processes; use it as a context manager.

    Args:
        num_workers: processes, >= 1; they start with the first job.
        timeout_s: longest time one agent's batch may take, None for no limit. A worker that is
            late is ended and replaced. Starting a process does not count.
    """

    def __init__(self, num_workers: int, *, timeout_s: float | None = None) -> None:
        if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < 1:
            raise ConfigurationError(f"num_workers must be an integer >= 1, got {num_workers!r}")
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigurationError(f"timeout_s must be positive or None, got {timeout_s!r}")
        self._workers: list[_Worker | None] = [None] * num_workers
        self._homes: dict[EnvSpec, int] = {}  # spec -> slot that rolled it last: it may be kept
        self._timeout_s = timeout_s
        self._closed = False

    def __enter__(self) -> RolloutWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; the pool is unusable afterwards."""
        self._closed = True
        for slot in range(len(self._workers)):
            self._discard(slot)

    def collect(
        self,
        policy: MlpPolicy,
        parameters: NDArray[np.floating],
        specs: Sequence[EnvSpec],
        num_trajectories_each: int,
        *,
        horizon: int,
        rngs: Sequence[np.random.Generator],
        exploration: float = 0.0,
        guide: Guide | None = None,
    ) -> list[TrajectoryBatch | EnvironmentFault]:
        """As ``collect_fleet``; advances ``rngs`` as rolling in this process would.

        Raises:
            ConfigurationError: a process could not be started; otherwise as ``collect_fleet``.
        """
        if self._closed:
            raise LocalProtocolError("the rollout workers are closed")
        jobs = [
            _Job(
                policy=policy,
                parameters=policy.checked(parameters),
                spec=spec,
                num_trajectories=num_trajectories_each,
                horizon=horizon,
                rng=rng,
                exploration=exploration,
                guide=guide,
            )
            for spec, rng in zip(specs, rngs, strict=True)
        ]
        answers = self._run(jobs)
        return [_outcome(job, answer) for job, answer in zip(jobs, answers, strict=True)]

    def _run(self, jobs: Sequence[_Job]) -> list[_Answer]:
        """Hand the jobs out as workers become free; one answer per job."""
        answers = [_Answer(error="lost")] * len(jobs)
        waiting = deque(range(len(jobs)))
        busy: dict[int, tuple[int, float]] = {}  # slot -> (job, deadline)
        try:
            while waiting or busy:
                for slot in range(len(self._workers)):
                    if slot not in busy and waiting:
                        job = self._next_job(slot, waiting, jobs)
                        if self._send(slot, jobs[job]):
                            busy[slot] = (job, self._deadline(slot))
                for slot in self._ready(busy):
                    job, _deadline = busy[slot]
                    answer = self._receive(slot)
                    if answer is None:
                        busy[slot] = (job, self._deadline())
                        continue
                    del busy[slot]
                    answers[job] = answer
                    if answers[job].batch is not None:
                        self._homes[jobs[job].spec] = slot
        finally:
            # an interrupt left these with an answer that nobody would ask for
            for slot in busy:
                self._discard(slot)
        return answers

    def _next_job(self, slot: int, waiting: deque[int], jobs: Sequence[_Job]) -> int:
        """The first job whose environments this slot has, else one that no slot has, else any."""
        homes = [self._homes.get(jobs[job].spec) for job in waiting]
        for wanted in (slot, None):
            if wanted in homes:
                index = homes.index(wanted)
                break
        else:
            index = 0
        job = waiting[index]
        del waiting[index]
        return job

    def _deadline(self, slot: int | None = None) -> float:
        """When the job of ``slot`` is late; that of a process that has still to start, anyway."""
        worker = None if slot is None else self._workers[slot]
        if worker is not None and not worker.started:
            return time.monotonic() + _START_TIMEOUT_S
        return time.monotonic() + self._timeout_s if self._timeout_s else float("inf")

    def _send(self, slot: int, job: _Job) -> bool:
        """Give a job to a slot, with a new process if the old one is gone; False if it is lost."""
        worker = self._workers[slot]
        if worker is None or not worker.process.is_alive():
            self._discard(slot)
            worker = self._workers[slot] = _Worker.start()
        try:
            worker.connection.send(job)
        except OSError:
            self._discard(slot)
            return False
        return True

    def _ready(self, busy: dict[int, tuple[int, float]]) -> list[int]:
        """Slots that answered, died or are late."""
        owners = {worker.connection: slot for slot in busy if (worker := self._workers[slot])}
        earliest = min((deadline for _job, deadline in busy.values()), default=0.0)
        patience = None if earliest == float("inf") else max(0.0, earliest - time.monotonic())
        readable = wait(list(owners), patience)
        answered = [slot for connection, slot in owners.items() if connection in readable]
        now = time.monotonic()
        for slot, (_job, deadline) in busy.items():
            if slot not in answered and now >= deadline:
                worker = self._workers[slot]
                if worker is not None and not worker.started:
                    raise _never_started()
                self._discard(slot)
                answered.append(slot)
        return answered

    def _receive(self, slot: int) -> _Answer | None:
        """What a slot has to say; None if it is that its process has started."""
        worker = self._workers[slot]
        if worker is None:
            return _Answer(error="late")
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            self._discard(slot)
            if not worker.started:
                raise _never_started() from None
            return _Answer(error="lost")
        if answer == _STARTED:
            worker.started = True
            return None
        found: _Answer = answer
        return found

    def _discard(self, slot: int) -> None:
        """End a slot's process, if it has one."""
        worker, self._workers[slot] = self._workers[slot], None
        self._homes = {spec: home for spec, home in self._homes.items() if home != slot}
        if worker is not None:
            worker.end()


@dataclass(slots=True, kw_only=True)
class _Worker:
    """One spawned process, this end of its pipe, and whether it has said that it runs."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    started: bool = False

    @classmethod
    def start(cls, target: Callable[..., None] | None = None, *arguments: Any) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve if target is None else target, args=(theirs, *arguments), daemon=True
        )
        process.start()
        theirs.close()  # so that the death of the process reads as end of file
        return cls(process=process, connection=ours)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join(_JOIN_TIMEOUT_S)


def _never_started() -> ConfigurationError:
    return ConfigurationError(
        "workers must be able to start: a new process ended, or hung, before it had begun. A "
        'script that trains must do so below `if __name__ == "__main__":`, for each process '
        "imports it anew"
    )


def in_process_of_its_own(function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
    """``function(*arguments)`` where a crash or a hang of foreign code costs the answer only.

    Args:
        function: of a module, with arguments and result that can be pickled.
        timeout_s: counts from the start of the process, which has as long again.
    Raises:
        EnvironmentFault: it raised, took the process down, or was late.
    """
    worker = _Worker.start(_serve_once, function, arguments)
    try:
        answer: Any = _STARTED
        while isinstance(answer, str) and answer == _STARTED:
            if not worker.connection.poll(timeout_s):
                raise EnvironmentFault(f"no answer within {timeout_s:g} s")
            answer = worker.connection.recv()
    except (EOFError, OSError):
        raise EnvironmentFault("the process ended without an answer") from None
    finally:
        worker.end()
    if isinstance(answer, EnvironmentFault):
        raise answer
    return answer


def _serve_once(
    connection: Connection, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(_STARTED)
    try:
        answer = function(*arguments)
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything
        text = str(error) if isinstance(error, PrivfedrlError) else type(error).__name__
        answer = EnvironmentFault(text)
    connection.send(answer)


def _serve(connection: Connection) -> None:
    """A worker's life: roll jobs until the pipe closes, keeping environments between jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    with contextlib.suppress(ImportError):  # seconds on a cold disk, which are not the job's
        import gymnasium  # noqa: F401
    connection.send(_STARTED)
    envs: dict[tuple[EnvSpec, int], VectorEnv] = {}
    while True:
        try:
            job: _Job = connection.recv()
        except EOFError:
            return
        connection.send(_answer(job, envs))


def _answer(job: _Job, envs: dict[tuple[EnvSpec, int], VectorEnv]) -> _Answer:
    key = (job.spec, job.num_trajectories)
    env = envs.pop(key, None)
    try:
        env = env or make_vector_env(job.spec, job.num_trajectories)
        batch = collect(
            job.policy,
            job.parameters,
            env,
            horizon=job.horizon,
            rng=job.rng,
            exploration=job.exploration,
            guide=job.guide,
        )
    except (EnvironmentFault, ConfigurationError, MissingExtraError) as error:
        if env is not None:  # a faulty environment is not kept
            env.close()
        return _refusal(error)
    _keep(envs, key, env)
    return _Answer(batch=batch, rng_state=job.rng.bit_generator.state)


def _refusal(error: EnvironmentFault | ConfigurationError | MissingExtraError) -> _Answer:
    if isinstance(error, EnvironmentFault):
        return _Answer(error="fault", message=str(error))
    if isinstance(error, ConfigurationError):
        return _Answer(error="configuration", message=str(error))
    return _Answer(error="missing")


def _keep(
    envs: dict[tuple[EnvSpec, int], VectorEnv], key: tuple[EnvSpec, int], env: VectorEnv
) -> None:
    """Keep an environment for its agent's next batch; those used longest ago make room."""
    while envs and sum(rows for _spec, rows in envs) + key[1] > _MAX_ROWS:
        envs.pop(next(iter(envs))).close()
    envs[key] = env


def _outcome(job: _Job, answer: _Answer) -> TrajectoryBatch | EnvironmentFault:
    """What the caller gets: a batch or this agent's fault; mistakes of the caller are raised."""
    if answer.batch is not None:
        job.rng.bit_generator.state = answer.rng_state
        return answer.batch
    if answer.error == "configuration":
        raise ConfigurationError(answer.message)
    if answer.error == "missing":
        raise MissingExtraError(f"Gymnasium or a dependency of {job.spec.id}", extra="rl")
    if answer.error == "late":
        return EnvironmentFault(f"{job.spec.id}: rollout took longer than its time limit")
    if answer.error == "lost":
        return EnvironmentFault(f"{job.spec.id}: the worker process ended")
    return EnvironmentFault(answer.message)
