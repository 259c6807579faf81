"""docs/protocol.md names everything that is on the wire, and its figures are the code's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privfedrl.he import frames as he_frames
from privfedrl.he.frames import Kind
from privfedrl.parties.opening import CLOCK_TOLERANCE_S
from privfedrl.secagg import AbortCode, SecAggParameters, messages
from privfedrl.secagg.parameters import MAX_CLIENTS, MAX_COMPLETE, MAX_VECTOR_LENGTH
from privfedrl.secagg.phases import (
    CLIENT_TRANSITIONS,
    SERVER_COLLECTS,
    SERVER_NEXT,
    ClientPhase,
    ServerPhase,
)
from privfedrl.secagg.sizes import Limits, MessageType, frame_limit
from privfedrl.secagg.unmasking import MAX_TRIES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "privfedrl" / "secagg"
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
COLUMNS = (
    SecAggParameters(num_clients=10, max_colluding=1, vector_length=1000),
    SecAggParameters(num_clients=256, max_colluding=85, vector_length=20_000, ring_bits=64),
)


def section(title: str) -> str:
    """The part of the document under the heading that starts with ``title``."""
    found = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[0]


def structs() -> dict[MessageType, Any]:
    """The struct of every message type, found by its tag."""
    found = {}
    for value in vars(messages).values():
        config = getattr(value, "__struct_config__", None)
        if config is not None and config.tag is not None:
            found[MessageType(config.tag)] = value
    return found


def described(kind: MessageType) -> str:
    found = re.search(
        rf"^\*\*{kind.value} {kind.name}\*\*.*?(?=^\*\*\d|^## )", TEXT, re.MULTILINE | re.DOTALL
    )
    assert found, kind.name
    return found[0]


@pytest.mark.parametrize("kind", MessageType, ids=lambda kind: kind.name)
def test_every_message_lists_its_fields_in_order(kind: MessageType) -> None:
    text, struct = described(kind), structs()[kind]
    assert f"label `{kind.label}` (`{struct.__name__}`)" in text
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named == list(struct.__struct_fields__)


def test_every_message_type_has_a_struct() -> None:
    assert structs().keys() == set(MessageType)


def _calls() -> Iterator[tuple[str, str]]:
    """(function, first argument) of every label("...") and digest("...") of the package."""
    for path in (*SOURCE.glob("*.py"), *(SOURCE.parent / "parties").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in ("label", "digest") and isinstance(first, ast.Constant):
                    yield node.func.id, first.value


def test_every_label_has_a_row_and_every_row_a_label() -> None:
    used = {name for _, name in _calls()}
    rows = set(re.findall(r"^\| `([\w-]+)` \|", section("1. Conventions"), re.MULTILINE))
    assert rows == used
    hashed = {name for function, name in _calls() if function == "digest"}
    for name in hashed:
        assert re.search(rf"^\| `{name}` \| digest", TEXT, re.MULTILINE), name


def test_every_abort_code_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("14. Errors"), re.MULTILINE)
    assert sorted(rows) == sorted(code.value for code in AbortCode)


def test_checks_name_abort_codes_only() -> None:
    text = section("10. The client")
    codes = re.findall(r"^\| .* \| (\w+) \|$", text, re.MULTILINE)
    known = {code.value for code in AbortCode}
    assert set(codes) - {"code"} <= known
    raised = set(codes) | set(re.findall(r"\*\*(\w+)\*\*", text))
    source = (SOURCE / "client.py").read_text("utf-8") + (SOURCE / "agreement.py").read_text(
        "utf-8"
    )
    for name in re.findall(r"AbortCode\.([A-Z_]+)", source):
        code = AbortCode[name]
        if code is not AbortCode.DEADLINE:  # the caller's, not a check
            assert code.value in raised, name


def test_constants_are_those_of_the_code() -> None:
    assert f"{CLOCK_TOLERANCE_S} s" in section("10.")
    assert f"at most {MAX_TRIES} in all" in section("11.")
    assert f"2 to {MAX_COMPLETE}; to {MAX_CLIENTS}" in section("3.")
    assert f"1 to 2^{MAX_VECTOR_LENGTH.bit_length() - 1} words" in section("3.")


def test_parameters_are_listed_in_the_order_of_their_bytes() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", section("3."), re.MULTILINE)
    names = (
        *("num_clients", "max_colluding", "vector_length", "ring_bits", "threshold"),
        *("min_clients", "min_honest", "max_dropouts", "security_bits", "correctness_bits"),
        *("server", "differencing"),
    )
    assert rows == [(str(index), name) for index, name in enumerate(names)]
    example = SecAggParameters(
        num_clients=7, max_colluding=1, vector_length=3, ring_bits=64, threshold=6, min_clients=4
    )
    data = example.canonical_bytes()
    values = [int.from_bytes(data[at : at + 8], "big") for at in range(0, 96, 8)]
    assert values == [getattr(example, name) for name in names[:7]] + [0] * 5


def _bin(size: int) -> int:
    return size + (2 if size < 256 else 3 if size < 65536 else 5)


def _arr(count: int) -> int:
    return 1 if count < 16 else 3 if count < 65536 else 5


def _evaluated(formula: str, limits: Limits) -> int:
    n, k = limits.num_clients, limits.neighbours
    h = (n - 1).bit_length()
    names = {
        "n": n,
        "k": k,
        "D": limits.vector_length,
        "w": limits.ring_bits,
        "m": _bin(-(-n // 8)),
        "h": h,
        "r": 0 if k + 1 >= n else 32 * (k + 1) * h,
        "E": 76,
        "N": 66,
        "G": 34,
        "A": 102,
        "V": 246,
        "bin": _bin,
        "arr": _arr,
    }
    return int(eval(formula, {"__builtins__": {}}, names))


def rows_of_sizes() -> dict[MessageType, tuple[str, list[int]]]:
    rows = re.findall(
        r"^\| (\w+) \| `([^`]+)` \| (\d+) \| (\d+) \|$", section("15. Sizes"), re.MULTILINE
    )
    return {MessageType[name]: (formula, [int(a), int(b)]) for name, formula, a, b in rows}


def test_the_formulas_of_sizes_are_the_limits_for_any_parameters() -> None:
    rows = rows_of_sizes()
    assert rows.keys() == set(MessageType)
    for n, k in ((2, 1), (5, 4), (17, 16), (256, 255), (300, 299), (1000, 128), (65_520, 300)):
        for length, bits in ((1, 32), (60, 32), (64, 32), (20_000, 64), (2**28, 64)):
            limits = Limits(num_clients=n, neighbours=k, vector_length=length, ring_bits=bits)
            for kind, (formula, _) in rows.items():
                assert _evaluated(formula, limits) == frame_limit(kind, limits), (kind, limits)


def test_the_figures_of_sizes_are_the_limits() -> None:
    for kind, (_, figures) in rows_of_sizes().items():
        assert figures == [parameters.frame_limit(kind) for parameters in COLUMNS], kind


def client_diagram() -> str:
    """The client's state machine as the document must show it."""
    lines = ["stateDiagram-v2", f"    [*] --> {ClientPhase.IDLE.name}"]
    for (phase, kind), following in CLIENT_TRANSITIONS.items():
        lines.append(f"    {phase.name} --> {following.name}: {kind.name}")
    for phase in ClientPhase:
        if phase not in {before for before, _ in CLIENT_TRANSITIONS}:
            lines.append(f"    {phase.name} --> [*]")
    return "\n".join(lines)


def server_diagram() -> str:
    """The coordinator's state machine as the document must show it."""
    first = next(iter(SERVER_NEXT))
    lines = ["stateDiagram-v2", f"    [*] --> {ServerPhase.IDLE.name}"]
    lines.append(f"    {ServerPhase.IDLE.name} --> {first.name}: start")
    for (phase, kind), same in SERVER_COLLECTS.items():
        lines.append(f"    {phase.name} --> {same.name}: {kind.name}")
    for phase, following in SERVER_NEXT.items():
        lines.append(f"    {phase.name} --> {following.name}: complete or closed")
        lines.append(f"    {phase.name} --> {ServerPhase.ABORTED.name}: too few")
    for phase in (ServerPhase.DONE, ServerPhase.ABORTED):
        lines.append(f"    {phase.name} --> [*]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("title", "expected"),
    [("10. The client", client_diagram()), ("11. The coordinator", server_diagram())],
    ids=["client", "coordinator"],
)
def test_the_diagrams_are_drawn_from_the_transition_tables(title: str, expected: str) -> None:
    (found,) = re.findall(r"^```mermaid\n(.*?)\n```", section(title), re.MULTILINE | re.DOTALL)
    assert found == expected


def test_every_file_of_vectors_that_is_named_exists() -> None:
    for pattern in re.findall(r"`(secagg_[\w*]+\.json)`", section("Test vectors")):
        assert list((ROOT / "tests" / "vectors").glob(pattern)), pattern


def test_every_row_of_a_table_has_the_columns_of_its_head() -> None:
    for table in re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE):
        columns = {row.count("|") for row in table.splitlines()}
        assert len(columns) == 1, table


HOMOMORPHIC = (ROOT / "docs" / "homomorphic.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_the_table_of_homomorphic_messages_is_that_of_the_code(kind: Kind) -> None:
    row = he_frames._ROWS[kind]
    found = re.search(
        rf"^\| {kind.value} {kind.name} \| (.*?) \| (.*?) \| (.*?) \|$", HOMOMORPHIC, re.MULTILINE
    )
    assert found, kind.name
    assert found[1] == row.role
    assert re.findall(r"`(\w+)`", found[2]) == list(row.struct.__struct_fields__)
    assert (found[3] == "none") == (row.pins is None)
    if row.pins is not None:
        (pin,) = re.findall(r"`(\w+)`", found[3])
        assert pin in row.struct.__struct_fields__
