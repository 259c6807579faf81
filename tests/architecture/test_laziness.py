"""A coordinator or an auditor never loads what only agents need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "opacus", "gymnasium", "tenseal", "hypothesis", "matplotlib", "flwr")
PLAN = ROOT / "examples" / "plans" / "cartpole_fleet.toml"
STATEMENTS = {
    "the package": "import privfedrl",
    "what a coordinator needs": "from privfedrl import Coordinator, Ledger, Plan, Registry",
    "what an auditor needs": "from privfedrl import Ledger, Statement\n"
    "from privfedrl.secagg import Transcript",
    "verifying transcripts": "from privfedrl.audit import verify_transcripts",
    "adapting a protocol": "from privfedrl.testing import AggregationAdapter",
    "checking a plan": f"from privfedrl import Plan\nPlan.from_toml({str(PLAN)!r}).check()",
}


@pytest.mark.parametrize("what", sorted(STATEMENTS))
def test_heavy_libraries_stay_unloaded(what: str) -> None:
    code = f"{STATEMENTS[what]}\nimport sys\nprint([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [["plan", "check", str(PLAN)], ["version"], ["audit", "list"]]
)
def test_the_auditors_commands_work_where_torch_is_not_installed(arguments: list[str]) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
sys.argv[1:] = {arguments!r}
from privfedrl.cli.main import run
run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_coordinator_works_where_torch_is_not_installed(tmp_path: Path) -> None:
    """Blocking the import stands for an installation without the extra ``rl``."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
import privfedrl as pf
from privfedrl.errors import MissingExtraError
plan = pf.Plan.from_toml({str(PLAN)!r})
identity = pf.Identity.generate("coordinator")
agents = [pf.Identity.generate(f"agent-{{k}}") for k in range(plan.fleet.agents)]
registry = pf.Registry([identity.entry("coordinator"), *(a.entry("agent") for a in agents)])
policy = pf.MlpPolicy(observation_size=4, hidden=(32,), action="categorical", action_size=2)
import numpy as np
state = pf.initial_federation_state(bytes(32), policy.initial_parameters(np.random.default_rng(0)))
with pf.Ledger.open({str(tmp_path / "ledger.db")!r}) as ledger:
    coordinator = pf.Coordinator(
        plan, identity=identity, registry=registry, ledger=ledger, state=state
    )
    print(len(coordinator.open_round()))
try:
    pf.simulate
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    invitations, missing = done.stdout.splitlines()
    assert invitations == "10"
    assert 'pip install "privfedrl[rl]"' in missing
