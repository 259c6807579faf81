"""Keys, encryption and decryption: exact sums, fresh noise, and nothing that SEAL would swallow."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal
import tenseal.sealapi as seal
from numpy.typing import NDArray

from privfedrl.errors import (
    ConfigurationError,
    LocalProtocolError,
    MissingExtraError,
    RemoteProtocolError,
)
from privfedrl.he import lattice
from privfedrl.he.lattice import Decryptor, Encryptor, public_key_bytes
from privfedrl.he.parameter_sets import PARAMETER_SETS, ParameterSet
from privfedrl.he.residues import Residues, add_into, pack, packed_bytes, unpack

Pair = tuple[Decryptor, Encryptor]
Pairs = Callable[[str], Pair]
NAMES = sorted(PARAMETER_SETS)
EXACT = [name for name in NAMES if PARAMETER_SETS[name].exact]
STD = PARAMETER_SETS["bfv-4096-std"]


def _slots(parameters: ParameterSet, count: int, *, terms: int = 1, seed: int = 0) -> Any:
    """Random slots, both extremes among them, of which ``terms`` may be added."""
    rng = np.random.default_rng(seed)
    if parameters.exact:
        t = parameters.plain_modulus
        assert t is not None
        out = rng.integers(0, t, size=(count, parameters.slots), dtype=np.uint64)
        out[:, :2] = 0, t - 1
        return out
    bound = 2**27 // terms
    values = rng.integers(-bound, bound, size=(count, parameters.slots), dtype=np.int64)
    values[:, :2] = -(bound - 1), bound - 1
    return values


def _unpacked(data: bytes, parameters: ParameterSet, count: int = 1) -> Residues:
    return unpack(data, parameters.sent_primes, parameters.degree, count)


def _total(uploads: list[bytes], parameters: ParameterSet, count: int) -> bytes:
    primes = parameters.sent_primes
    total = _unpacked(uploads[0], parameters, count)
    for upload in uploads[1:]:
        add_into(total, _unpacked(upload, parameters, count), primes)
    return pack(total, primes)


# --- what is encrypted is decrypted -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_was_encrypted_is_decrypted(pair: Pairs, name: str) -> None:
    decryptor, encryptor = pair(name)
    parameters = PARAMETER_SETS[name]
    slots = _slots(parameters, 3)
    kept = slots.copy()
    data = encryptor.encrypt(slots)
    assert len(data) == 3 * packed_bytes(parameters.sent_primes, parameters.degree)
    opened = decryptor.decrypt(data, 3)
    assert opened.dtype == slots.dtype
    assert np.array_equal(opened, slots)
    assert np.array_equal(slots, kept)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_are_no_bytes(pair: Pairs, name: str) -> None:
    decryptor, encryptor = pair(name)
    assert encryptor.encrypt(_slots(PARAMETER_SETS[name], 1)[:0]) == b""
    assert decryptor.decrypt(b"", 0).shape == (0, PARAMETER_SETS[name].slots)


@pytest.mark.parametrize("name", NAMES)
def test_a_sum_of_the_most_fresh_ciphertexts_decrypts_exactly(pair: Pairs, name: str) -> None:
    """Every summand is encrypted anew; slots at 0, at t - 1 and at random values."""
    decryptor, encryptor = pair(name)
    parameters = PARAMETER_SETS[name]
    most = parameters.max_clients
    vectors = [_slots(parameters, 2, terms=most, seed=seed) for seed in range(most)]
    total = _total([encryptor.encrypt(slots) for slots in vectors], parameters, 2)
    expected = sum(slots.astype(object) for slots in vectors)
    if parameters.exact:
        expected = expected % parameters.plain_modulus
        assert decryptor.noise_budget(total, 2) > 0
    assert np.array_equal(decryptor.decrypt(total, 2).astype(object), expected)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("lane_value", [0, 1])
def test_lanes_that_are_all_full_or_all_empty_decrypt_exactly_at_the_most_additions(
    pair: Pairs, name: str, lane_value: int
) -> None:
    """The largest slot whose sum stays below t, and zero."""
    decryptor, encryptor = pair(name)
    parameters = PARAMETER_SETS[name]
    most = parameters.max_clients
    value = lane_value * ((2**parameters.plain_bits - 1) // most)
    slots = np.full((1, parameters.slots), value, dtype=np.uint64)
    total = _total([encryptor.encrypt(slots) for _ in range(most)], parameters, 1)
    assert np.array_equal(decryptor.decrypt(total, 1), slots * np.uint64(most))
    assert decryptor.noise_budget(total, 1) > 0


def _multiplied(data: bytes, factor: int) -> bytes:
    """What a malicious adder can make of one ciphertext."""
    residues = _unpacked(data, STD).astype(object) * factor % STD.sent_primes[0]
    return pack(residues.astype(np.uint64), STD.sent_primes)


@pytest.mark.parametrize(("factor", "right"), [(1, True), (16, True), (50_000, False)])
def test_a_noise_budget_of_zero_is_where_decryption_goes_wrong(
    pair: Pairs, factor: int, right: bool
) -> None:
    """Fresh noise times 50,000 is that of 2.5 * 10^9 honest additions."""
    decryptor, encryptor = pair(STD.name)
    slots = np.ones((1, STD.slots), dtype=np.uint64)
    data = _multiplied(encryptor.encrypt(slots), factor)
    assert np.array_equal(decryptor.decrypt(data, 1), slots * np.uint64(factor)) is right
    assert (decryptor.noise_budget(data, 1) > 0) is right


def test_a_noise_budget_says_nothing_of_a_ciphertext_that_is_no_honest_sum(pair: Pairs) -> None:
    """Times 2^16, about q / t, the noise has moved into the message and leaves little behind."""
    decryptor, encryptor = pair(STD.name)
    slots = np.ones((1, STD.slots), dtype=np.uint64)
    data = _multiplied(encryptor.encrypt(slots), 2**16)
    assert not np.array_equal(decryptor.decrypt(data, 1), slots << np.uint64(16))
    assert decryptor.noise_budget(data, 1) > 0


def test_a_noise_budget_is_refused_where_the_scheme_has_none(pair: Pairs) -> None:
    decryptor, encryptor = pair("ckks-4096-add")
    data = encryptor.encrypt(_slots(PARAMETER_SETS["ckks-4096-add"], 1))
    with pytest.raises(ConfigurationError, match="ckks-4096-add has no noise budget"):
        decryptor.noise_budget(data, 1)


def test_the_noise_budget_is_that_of_the_worst_ciphertext(pair: Pairs) -> None:
    decryptor, encryptor = pair(STD.name)
    good = encryptor.encrypt(np.zeros((2, STD.slots), dtype=np.uint64))
    bad = pack(np.full((1, 2, 1, STD.degree), 12345, dtype=np.uint64), STD.sent_primes)
    assert decryptor.noise_budget(good, 2) > 0
    assert decryptor.noise_budget(good + bad, 3) == 0


@pytest.mark.parametrize("name", NAMES)
def test_encryption_is_fresh_every_time(pair: Pairs, name: str) -> None:
    """No residue of two ciphertexts of the same slots agrees.

    False-positive rate: at most 3 * 2 * 2 * 4096 * 2^-39.9 < 5e-8 (two 40-bit primes, wide set).
    """
    _, encryptor = pair(name)
    parameters = PARAMETER_SETS[name]
    slots = np.repeat(_slots(parameters, 1), 2, axis=0)
    one, two = _unpacked(encryptor.encrypt(slots), parameters, 2)
    three = _unpacked(encryptor.encrypt(slots[:1]), parameters)[0]
    for left, right in ((one, two), (one, three), (two, three)):
        assert not np.any(left == right)


def test_two_decryptors_have_nothing_in_common() -> None:
    one, two = Decryptor(STD), Decryptor(STD)
    keys = [unpack(one.public_key, STD.primes, STD.degree, 1) for one in (one, two)]
    # 20-bit residues agree by chance: 4096 of them, each with probability 2^-20; 60-bit ones do not
    assert not np.any(keys[0][:, :, 0] == keys[1][:, :, 0])


@pytest.mark.parametrize("name", NAMES)
def test_a_public_key_has_its_exact_size_and_residues_of_every_prime(
    pair: Pairs, name: str
) -> None:
    decryptor, _ = pair(name)
    parameters = PARAMETER_SETS[name]
    assert len(decryptor.public_key) == public_key_bytes(parameters)
    bits = sum(-(-prime.bit_length() // 4) * 4 for prime in parameters.primes)
    assert public_key_bytes(parameters) == 2 * parameters.degree * bits // 8


# --- the noise itself (audits/proofs/bfv_sums.md) -----------------------------------------------


def _coefficients(decryptor: Decryptor, slots: NDArray[np.uint64]) -> NDArray[np.object_]:
    """The plaintext polynomial that SEAL's encoder makes of one row of slots."""
    plain = decryptor._scheme.encode(slots)
    return np.array([plain[i] for i in range(plain.coeff_count())], dtype=object)


def _secret(decryptor: Decryptor) -> NDArray[np.int64]:
    """s, read out with one decryption of (0, floor(q / t)): the phase is floor(q / t) s."""
    crafted = np.zeros((1, 2, 1, STD.degree), dtype=np.uint64)
    crafted[0, 1, 0, 0] = STD.sent_primes[0] // (STD.plain_modulus or 1)
    slots = decryptor.decrypt(pack(crafted, STD.sent_primes), 1)[0]
    found = np.zeros(STD.degree, dtype=np.int64)
    coefficients = _coefficients(decryptor, slots)
    values = np.where(coefficients > 1, coefficients - STD.plain_modulus, coefficients)
    found[: values.size] = values.astype(np.int64)
    return found


def _times(polynomial: NDArray[np.uint64], secret: NDArray[np.int64]) -> NDArray[np.uint64]:
    """polynomial * secret in Z_q[x] / (x^N + 1), by shifting: independent of SEAL."""
    q, degree = np.uint64(STD.sent_primes[0]), STD.degree
    out = np.zeros(degree, dtype=np.uint64)
    for shift in np.flatnonzero(secret):
        rotated = np.concatenate([q - polynomial[degree - shift :], polynomial[: degree - shift]])
        out = (out + (rotated if secret[shift] > 0 else q - rotated)) % q
    return out


def _noise(decryptor: Decryptor, slots: NDArray[np.uint64], data: Residues) -> NDArray[np.float64]:
    """c0 + c1 s - q m / t, centred, for one ciphertext [2, 1, N]."""
    q, t = STD.sent_primes[0], STD.plain_modulus or 1
    phase = (data[0, 0].astype(object) + _times(data[1, 0], _secret(decryptor)).astype(object)) % q
    message = np.zeros(STD.degree, dtype=object)
    coefficients = _coefficients(decryptor, slots)
    message[: coefficients.size] = coefficients
    scaled = (phase * t - q * message) % (q * t)
    return np.array([value - q * t if 2 * value > q * t else value for value in scaled]) / t


def test_one_crafted_decryption_reveals_the_whole_key(pair: Pairs) -> None:
    """Why a key opens one sum that somebody re-added, and is then destroyed."""
    decryptor, encryptor = pair(STD.name)
    secret = _secret(decryptor)
    assert set(np.unique(secret)) == {-1, 0, 1}
    slots = _slots(STD, 1)
    data = _unpacked(encryptor.encrypt(slots), STD)[0]
    assert np.max(np.abs(_noise(decryptor, slots[0], data))) < 200  # with another s: about q / 2
    other = Decryptor(STD)
    assert np.max(np.abs(_noise(other, slots[0], data))) > STD.sent_primes[0] // 4


def test_an_agent_can_plant_the_key_in_a_sum_that_looks_honest_but_not_below_half_of_t(
    pair: Pairs,
) -> None:
    """Residues (0, round(q k / t)) are an encryption of k s that needs no knowledge of s.

    Re-adding finds nothing and the noise budget stays. What gives it away is that each of the 4096
    slots of k s is uniform below t: none has its highest bit set with probability 2^-4096. So the
    key holder must refuse a sum with a slot that honest contributors cannot have made, and the
    parameters must leave such slots (audits/proofs/bfv_sums.md, C3).
    """
    decryptor, encryptor = pair(STD.name)
    t, factor = STD.plain_modulus or 0, 123_456_789
    planted = np.zeros((1, 2, 1, STD.degree), dtype=np.uint64)
    planted[0, 1, 0, 0] = (STD.sent_primes[0] * factor + t // 2) // t
    honest = np.full((1, STD.slots), 7, dtype=np.uint64)
    uploads = [*(encryptor.encrypt(honest) for _ in range(3)), pack(planted, STD.sent_primes)]
    total = _total(uploads, STD, 1)
    assert decryptor.noise_budget(total, 1) > 0
    opened = decryptor.decrypt(total, 1)
    slots = (opened[0].astype(object) - 3 * 7) * pow(factor, -1, t) % t
    read = _coefficients(decryptor, slots.astype(np.uint64))
    assert np.array_equal(np.where(read > 1, read - t, read), _secret(decryptor)[: read.size])
    assert np.any(opened >> np.uint64(STD.plain_bits - 1))


@pytest.mark.statistical
def test_fresh_noise_has_the_predicted_deviation_and_grows_as_a_root(pair: Pairs) -> None:
    """Within 5 % of sqrt((1 + |s|^2) / 12) for one ciphertext; the variance of 64 is 64 times it.

    SEAL draws from the operating system, so no seed can be fixed. 4 * 4096 coefficients of single
    ciphertexts and 4 * 4096 of sums: the deviation of a sample deviation is 0.55 %, and 5 % are
    nine of them: false-positive rate below 1e-16 for Gaussian noise.
    """
    decryptor, encryptor = pair(STD.name)
    secret = _secret(decryptor)
    predicted = math.sqrt((1 + np.sum(secret**2)) / 12)
    slots = np.repeat(_slots(STD, 1), 4, axis=0)
    uploads = [encryptor.encrypt(slots) for _ in range(64)]
    single = _unpacked(uploads[0], STD, 4)
    total = _unpacked(_total(uploads, STD, 4), STD, 4)
    added = slots[0].astype(object) * 64 % STD.plain_modulus
    fresh = np.concatenate([_noise(decryptor, slots[0], data) for data in single])
    summed = np.concatenate([_noise(decryptor, added.astype(np.uint64), data) for data in total])
    assert np.std(fresh) == pytest.approx(predicted, rel=0.05)
    assert np.std(summed) == pytest.approx(8 * predicted, rel=0.05)
    # the room that decryption has, q / (2 t), is 2^15
    assert np.max(np.abs(summed)) < 2**15 / 8


# --- another implementation agrees --------------------------------------------------------------


def _tenseal_vector(context: Any, saved: bytes) -> Any:
    """A BFVVector around one saved ciphertext: TenSEAL's protobuf of sizes and ciphertexts."""
    length = bytearray()
    rest = len(saved)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return tenseal.bfv_vector_from(
        context, b"\x0a\x02\x80\x20\x12" + length + bytes([rest]) + saved
    )


def test_tenseals_own_vectors_open_what_was_encrypted_and_added_here(
    pair: Pairs, tmp_path: Path
) -> None:
    """Key, context and decryption are TenSEAL's high-level ones."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        STD.degree,
        plain_modulus=STD.plain_modulus,
        coeff_mod_bit_sizes=[60, 20],
        n_threads=1,
    )
    scheme = pair(STD.name)[0]._scheme
    key = scheme.residues(context.public_key().data, 2)
    encryptor = Encryptor(STD, pack(key[None], STD.primes))
    slots = _slots(STD, 1, seed=1), _slots(STD, 1, seed=2)
    total = _total([encryptor.encrypt(one) for one in slots], STD, 1)
    scheme.ciphertext(_unpacked(total, STD)[0]).save(str(tmp_path / "sum"))
    vector = _tenseal_vector(context, (tmp_path / "sum").read_bytes())
    opened = np.array(vector.decrypt(), dtype=object) % STD.plain_modulus
    assert np.array_equal(opened, (slots[0].astype(object) + slots[1])[0] % STD.plain_modulus)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_loaded_here_is_byte_for_byte_what_seal_saves(
    pair: Pairs, tmp_path: Path, name: str
) -> None:
    decryptor, _ = pair(name)
    parameters, scheme = PARAMETER_SETS[name], decryptor._scheme
    generator = seal.KeyGenerator(scheme.context)
    public = seal.PublicKey()
    generator.create_public_key(public)
    ciphertext = seal.Ciphertext()
    encryptor = seal.Encryptor(scheme.context, public)
    encryptor.encrypt(scheme.encode(_slots(parameters, 1)[0]), ciphertext)
    rebuilt_key = scheme.public_key(scheme.residues(public, len(parameters.primes)))
    rebuilt = scheme.ciphertext(scheme.residues(ciphertext, len(parameters.sent_primes)))
    for ours, theirs in ((rebuilt, ciphertext), (rebuilt_key, public)):
        ours.save(str(tmp_path / "ours"))
        theirs.save(str(tmp_path / "theirs"))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


# --- who holds what -----------------------------------------------------------------------------


def test_an_encryptor_works_where_no_secret_key_can_exist(
    pair: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of SEAL that makes, holds or uses a secret key is gone while it works."""
    decryptor, _ = pair(STD.name)
    slots = _slots(STD, 1)
    with monkeypatch.context() as patch:
        for name in ("KeyGenerator", "SecretKey", "Decryptor"):
            patch.delattr(seal, name)
        with pytest.raises(AttributeError):
            Decryptor(STD)
        data = Encryptor(STD, decryptor.public_key).encrypt(slots)
    assert np.array_equal(decryptor.decrypt(data, 1), slots)


def test_nothing_that_an_encryptor_reaches_is_a_secret_key_or_a_decryptor(pair: Pairs) -> None:
    found, queue = set(), [pair(STD.name)[1]]
    kinds = set()
    while queue:
        one = queue.pop()
        if id(one) in found or isinstance(one, type) or type(one).__name__ == "module":
            continue
        found.add(id(one))
        kinds.add(type(one).__name__)
        queue += [part for part in gc.get_referents(one) if not callable(part)]
        queue += list(getattr(one, "__dict__", {}).values())
    assert {"Encryptor", "SEALContext", "BatchEncoder"} <= kinds
    assert not kinds & {"SecretKey", "Decryptor", "KeyGenerator"}


def test_neither_half_leaves_its_process(pair: Pairs) -> None:
    decryptor, encryptor = pair(STD.name)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError, match="secret key"):
            leave(decryptor)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(encryptor)


def test_threads_that_share_an_encryptor_or_a_decryptor_get_each_its_own_slots() -> None:
    """They take turns at SEAL's file; otherwise one reads what the other has written."""
    decryptor = Decryptor(STD)
    encryptor = Encryptor(STD, decryptor.public_key)
    right: list[int] = []

    def work(value: int) -> None:
        slots = np.full((1, STD.slots), value, dtype=np.uint64)
        for _ in range(150):
            right.append(int(np.array_equal(decryptor.decrypt(encryptor.encrypt(slots), 1), slots)))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert right == [1] * 300


def test_keys_are_refused_in_a_forked_child_and_serve_their_own_process_on(pair: Pairs) -> None:
    """The child shares the open file with its parent; it says what it met, and ends at once."""
    decryptor, encryptor = pair(STD.name)
    slots = _slots(STD, 1)
    data = encryptor.encrypt(slots)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # from Python 3.12 on forking is warned of where there are threads, as numpy's may be
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            for work in (
                lambda: encryptor.encrypt(slots),
                lambda: decryptor.decrypt(data, 1),
                lambda: decryptor.noise_budget(data, 1),
            ):
                with pytest.raises(LocalProtocolError) as caught:
                    work()
                os.write(writer, f"{caught.value}\n".encode())
        finally:
            os._exit(0)  # nothing of the test run may go on in here
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answers = pipe.read().splitlines()
    os.waitpid(child, 0)
    refusal = "keys are not carried over a fork: make new ones in the child"
    assert answers == [refusal] * 3
    assert np.array_equal(decryptor.decrypt(data, 1), slots)


def test_a_decryptor_shows_its_set_and_nothing_else(pair: Pairs) -> None:
    assert repr(pair(STD.name)[0]) == "Decryptor(bfv-4096-std)"


def test_ciphertexts_of_different_keys_add_up_to_garbage_without_an_error(pair: Pairs) -> None:
    """Why every frame carries the key id: the arithmetic notices nothing."""
    decryptor, encryptor = pair(STD.name)
    foreign = Encryptor(STD, Decryptor(STD).public_key)
    slots = np.ones((1, STD.slots), dtype=np.uint64)
    total = _total([encryptor.encrypt(slots), foreign.encrypt(slots)], STD, 1)
    opened = decryptor.decrypt(total, 1)
    assert np.count_nonzero(opened == 2) < 3  # t is above 2^44: agreement is chance
    assert decryptor.noise_budget(total, 1) == 0


# --- what SEAL would swallow --------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("above", [0, 1, 2**63])
def test_a_slot_that_bfv_would_wrap_is_refused(pair: Pairs, name: str, above: int) -> None:
    parameters = PARAMETER_SETS[name]
    slots = np.zeros((2, parameters.slots), dtype=np.uint64)
    slots[1, -1] = (parameters.plain_modulus or 0) + above
    with pytest.raises(LocalProtocolError, match="outside the range of"):
        pair(name)[1].encrypt(slots)


@pytest.mark.parametrize("value", [2**27, -(2**27) - 1, 2**62, -(2**63)])
def test_a_slot_that_ckks_would_lose_is_refused(pair: Pairs, value: int) -> None:
    slots = np.zeros((1, 2048), dtype=np.int64)
    slots[0, 7] = value
    with pytest.raises(LocalProtocolError, match="outside the range of ckks-4096-add"):
        pair("ckks-4096-add")[1].encrypt(slots)


@pytest.mark.parametrize(
    "slots",
    [
        np.zeros((1, 4096), dtype=np.int64),
        np.zeros((1, 4096), dtype=np.float64),
        np.zeros((1, 4096), dtype=np.uint32),
        np.zeros((1, 4095), dtype=np.uint64),
        np.zeros((1, 4097), dtype=np.uint64),
        np.zeros((1, 0), dtype=np.uint64),
        np.zeros(4096, dtype=np.uint64),
        np.zeros((1, 1, 4096), dtype=np.uint64),
    ],
)
def test_slots_of_another_type_or_shape_are_refused(pair: Pairs, slots: Any) -> None:
    with pytest.raises(LocalProtocolError, match=r"slots must be uint64 \[count, 4096\]"):
        pair(STD.name)[1].encrypt(slots)
    with pytest.raises(LocalProtocolError, match=r"slots must be int64 \[count, 2048\]"):
        pair("ckks-4096-add")[1].encrypt(slots)


# --- what a peer may send -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, -1])
def test_a_public_key_with_a_residue_out_of_range_is_refused(
    pair: Pairs, name: str, index: int
) -> None:
    parameters = PARAMETER_SETS[name]
    key = unpack(pair(name)[0].public_key, parameters.primes, parameters.degree, 1)
    key[0, 1, index, 5] = parameters.primes[index]
    with pytest.raises(RemoteProtocolError, match="below its prime"):
        Encryptor(parameters, pack(key, parameters.primes))


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + b"\x00", lambda _: b""])
def test_a_public_key_of_another_length_is_refused(
    pair: Pairs, change: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(RemoteProtocolError, match="must be"):
        Encryptor(STD, change(pair(STD.name)[0].public_key))


@pytest.mark.parametrize("name", NAMES)
def test_a_ciphertext_that_is_no_residues_is_refused_and_any_residues_are_decrypted(
    pair: Pairs, name: str
) -> None:
    """Garbage in, garbage out, and nothing else: random residues, all zero, all largest."""
    decryptor, encryptor = pair(name)
    parameters = PARAMETER_SETS[name]
    primes = parameters.sent_primes
    data = encryptor.encrypt(_slots(parameters, 1))
    for work in (decryptor.decrypt, *([decryptor.noise_budget] if parameters.exact else [])):
        for wrong in (data[:-1], data + b"\x00", b"\xff" * len(data), b""):
            with pytest.raises(RemoteProtocolError):
                work(wrong, 1)
        with pytest.raises(RemoteProtocolError):
            work(data, 2)
    largest = np.array(primes, dtype=np.uint64)[:, None] - np.uint64(1)
    extreme = np.broadcast_to(largest, (1, 2, len(primes), parameters.degree)).copy()
    rng = np.random.default_rng(3)
    for residues in (extreme * np.uint64(0), extreme, rng.integers(0, extreme, dtype=np.uint64)):
        opened = decryptor.decrypt(pack(residues, primes), 1)
        assert opened.shape == (1, parameters.slots)
    assert np.array_equal(decryptor.decrypt(data, 1), _slots(parameters, 1))  # and unharmed by it


# --- what must be installed ---------------------------------------------------------------------


@pytest.mark.parametrize("module", ["tenseal.sealapi", "zstandard"])
def test_a_missing_library_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for work in (lattice.load_libraries, lambda: Decryptor(STD)):
        with pytest.raises(MissingExtraError, match=r"privfedrl\[he\]") as caught:
            work()
        assert module.split(".")[0] in str(caught.value)


def test_the_libraries_load_where_they_are_installed() -> None:
    lattice.load_libraries()
    assert {"tenseal.sealapi", "zstandard"} <= set(sys.modules)


def test_another_version_of_seal_is_refused_before_it_gives_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lattice, "SEAL_VERSION", "4.2")
    with pytest.raises(ConfigurationError, match=r"must embed SEAL 4\.2, it writes version 4\.3"):
        Decryptor(STD)


@pytest.mark.parametrize("place", [0, 2, 3, 4, 8])
def test_a_header_that_seal_would_not_write_is_refused(place: int) -> None:
    data = bytearray(lattice._header(8) + bytes(8))
    assert lattice._inflate(bytes(data), most=8) == bytes(8)
    data[place] ^= 1
    with pytest.raises(ConfigurationError, match=r"must embed SEAL 4\.3"):
        lattice._inflate(bytes(data), most=8)


@pytest.mark.parametrize("data", [b"", bytes(15)])
def test_a_file_in_which_seal_has_left_no_header_is_a_typed_error(data: bytes) -> None:
    """As where there is no room for it."""
    with pytest.raises(ConfigurationError, match="SEAL wrote nothing"):
        lattice._inflate(data, most=100)


def test_an_object_larger_than_its_parameters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="larger object"):
        lattice._inflate(lattice._header(9) + bytes(9), most=8)


def test_parameters_that_seal_refuses_are_refused_with_its_reason() -> None:
    """t equal to the special prime passes every rule of the set; SEAL wants them coprime."""
    shared = ParameterSet(
        name="shared",
        kind="bfv",
        degree=4096,
        primes=STD.primes,
        plain_modulus=STD.primes[1],
        scale_bits=None,
        max_clients=2,
        classical=128,
        post_quantum=128,
    )
    with pytest.raises(ConfigurationError, match="SEAL refuses shared: plain_modulus"):
        Decryptor(shared)


# --- files --------------------------------------------------------------------------------------


def test_where_there_is_no_memory_file_a_private_temporary_one_serves_and_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    decryptor = Decryptor(STD)
    encryptor = Encryptor(STD, decryptor.public_key)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]
    slots = _slots(STD, 2)
    data = encryptor.encrypt(slots)
    assert np.array_equal(decryptor.decrypt(data, 2), slots)
    del decryptor, encryptor
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_no_file_stays_open_and_none_gets_a_name_where_files_can_do_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    decryptor = Decryptor(STD)
    encryptor = Encryptor(STD, decryptor.public_key)
    data = encryptor.encrypt(_slots(STD, 1))
    decryptor.decrypt(data, 1)
    assert len(os.listdir("/dev/fd")) == before + 2
    assert (list(tmp_path.iterdir()) == []) is hasattr(os, "memfd_create")
    with pytest.raises(RemoteProtocolError):
        Encryptor(STD, b"")
    del decryptor, encryptor
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
