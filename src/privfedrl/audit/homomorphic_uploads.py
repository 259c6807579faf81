"""The audit of stored uploads: was the sum that a key authority opened the sum of what was sent?

Guarantee: :func:`verify_uploads` returns only if the record holds up under the given registry,
every named contributor's upload is there, signed and as it was committed to, and their sum is the
one that the key authority's receipt says it opened. It needs no key and no TenSEAL.
"""

from __future__ import annotations

from collections.abc import Iterable

from privfedrl.errors import RemoteProtocolError
from privfedrl.he import HETranscript
from privfedrl.he.digests import sealed_digest
from privfedrl.he.frames import FrameReader, Kind
from privfedrl.he.uploads import UploadSum
from privfedrl.parties import Registry

__all__ = ["verify_uploads"]


def verify_uploads(record: bytes, uploads: Iterable[bytes], registry: Registry) -> tuple[str, ...]:
    """Add stored uploads again and compare with a round's record.

    Args:
        record: a homomorphic round's transcript, as stored.
        uploads: the agents' upload frames, in any order, of the contributors alone; read one by
            one, so a generator keeps memory at one upload.
        registry: from a source that the audited party does not control.
    Returns:
        the contributors' names, sorted.
    Raises:
        RemoteProtocolError, AuthenticationFailed, RoundAborted: the record or an upload does not
            hold up, one is missing or too many, or the sum is another.
    """
    transcript = HETranscript.from_bytes(record)
    transcript.verify(registry)
    parameters, roster = transcript.parameters, transcript.roster(registry)
    reader, receipt = FrameReader(registry, parameters), transcript.receipt
    again = UploadSum(parameters, roster, registry)
    for data in uploads:
        frame = reader.read(data, frozenset({Kind.UPLOAD}))
        if (frame.message.cfg, frame.message.key) != (receipt.cfg, receipt.key):
            raise RemoteProtocolError(f"{frame.sender}'s upload is of another round or key")
        again.take(frame)
    contributors = transcript.survivors(registry)
    if tuple(sorted(again.names)) != contributors:
        raise RemoteProtocolError(
            f"the record names {len(contributors)} contributors, the uploads are of "
            f"{len(again.names)}: {sorted(again.names.symmetric_difference(contributors))} differ"
        )
    if sealed_digest(receipt.cfg, receipt.key, again.ciphertexts()) != receipt.sealed:
        raise RemoteProtocolError("the sum that was opened is not that of the uploads")
    return contributors
