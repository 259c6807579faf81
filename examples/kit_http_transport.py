"""The kit on a transport over HTTP: a relay on the loopback interface, polled by everybody.

    python examples/kit_http_transport.py

Reads top to bottom: the relay (Starlette), the transport (httpx), rounds over it. The relay holds
opaque bytes and is trusted with nothing. Takes a few seconds.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections import defaultdict, deque

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from privfedrl.testing import (
    Event,
    Fault,
    Packet,
    PairwiseAdapter,
    RoundSpec,
    Schedule,
    TransportAdapter,
    draw_vectors,
    play_over,
)

# --- 1. The relay: POST puts bytes into a mailbox, GET takes the oldest out -----------------------


class Relay:
    """One mailbox per recipient, in the memory of one event loop."""

    def __init__(self) -> None:
        self.mailboxes: defaultdict[str, deque[tuple[bytes, dict[str, str]]]] = defaultdict(deque)
        self.app = Starlette(
            routes=[Route("/{name}", self.put, methods=["POST"]), Route("/{name}", self.take)]
        )

    async def put(self, request: Request) -> Response:
        """The body for ``name``; sender and kind travel as headers, for the log only."""
        headers = {key: request.headers[key] for key in ("x-sender", "x-kind")}
        self.mailboxes[request.path_params["name"]].append((await request.body(), headers))
        return Response(status_code=204)

    async def take(self, request: Request) -> Response:
        """The oldest body for ``name``, within ``wait`` seconds; 204 if there is none."""
        mailbox = self.mailboxes[request.path_params["name"]]
        until = time.monotonic() + float(request.query_params["wait"])
        while not mailbox and time.monotonic() < until:
            await asyncio.sleep(0.005)
        if not mailbox:
            return Response(status_code=204)
        body, headers = mailbox.popleft()
        return Response(body, media_type="application/octet-stream", headers=headers)


# --- 2. The transport: four methods ---------------------------------------------------------------


class HttpTransport(TransportAdapter):
    """The relay in a thread of its own and one connection to it."""

    name = "HTTP relay"

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self._relay = Relay()
        self._server = uvicorn.Server(
            uvicorn.Config(self._relay.app, log_level="warning", lifespan="off")
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        port = listener.getsockname()[1]
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=10.0, trust_env=False
        )

    def send(self, packet: Packet) -> None:
        headers = {"x-sender": packet.sender, "x-kind": packet.kind}
        answer = self._http.post(f"/{packet.recipient}", content=packet.data, headers=headers)
        answer.raise_for_status()

    def receive(self, recipient: str, timeout_s: float) -> Packet | None:
        answer = self._http.get(f"/{recipient}", params={"wait": timeout_s})
        answer.raise_for_status()
        if answer.status_code == 204:
            return None
        headers = answer.headers
        return Packet(headers["x-sender"], recipient, answer.content, headers["x-kind"])

    def close(self) -> None:
        self._http.close()
        self._server.should_exit = True
        self._thread.join(timeout=10.0)

    def restart(self) -> None:
        self._relay.mailboxes.clear()


# --- 3. Rounds over it ----------------------------------------------------------------------------

FAULTS = {
    "nothing": Schedule(),
    "everything arrives twice": Schedule(events=(Event(fault=Fault.DUPLICATE),)),
    "one client vanishes": Schedule(
        events=(Event(fault=Fault.DROP, kind="masked", sender="client-001"),)
    ),
    "the relay restarts": Schedule(
        events=(Event(fault=Fault.RESTART, kind="shares", sender="client-002"),)
    ),
}


def main() -> int:
    """0 if nothing broke."""
    adapter, spec = PairwiseAdapter(), RoundSpec(num_clients=6, vector_length=64)
    vectors = draw_vectors(adapter, spec)
    transport, well = HttpTransport(), True
    try:
        for title, schedule in FAULTS.items():
            run = play_over(adapter, transport, spec, vectors, schedule)
            outcome = f"{len(run.aggregate.survivors)} in the sum" if run.aggregate else run.error
            print(f"{title:26} {outcome}")
            for finding in run.findings:
                print(f"    {finding.party}: {finding.what}")
            well = well and not run.findings
            well = well and (run.aggregate is not None or run.error is not None)
    finally:
        transport.close()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
