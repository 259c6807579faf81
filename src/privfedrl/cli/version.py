"""``privfedrl version``: what is installed, and with ``--crypto`` what protection rests on."""

from __future__ import annotations

import os
import platform
import ssl
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from privfedrl.cli.output import emit

__all__ = ["inventory", "version"]

_DEPENDENCIES = (
    "numpy",
    "scipy",
    "cryptography",
    "msgspec",
    "rich",
    "typer",
    "torch",
    "gymnasium",
    "opacus",
    "safetensors",
    "tenseal",
    "matplotlib",
    "hypothesis",
)


def version(
    crypto: Annotated[bool, typer.Option("--crypto", help="versions, AES-NI, entropy")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
) -> None:
    """Print the version, and with --crypto the cryptographic inventory."""
    found = inventory() if crypto else {"privfedrl": metadata.version("privfedrl")}
    if as_json:
        emit(found)
        return
    for name, value in found.items():
        typer.echo(f"{name:<16} {value}")


def inventory() -> dict[str, Any]:
    """Versions of every dependency, processor support for AES, and where entropy comes from."""
    from cryptography.hazmat.backends.openssl import backend

    rows: dict[str, Any] = {
        "privfedrl": metadata.version("privfedrl"),
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
        "openssl (ssl)": ssl.OPENSSL_VERSION,
        "aes instructions": _has_aes(),
        "entropy source": "getrandom" if hasattr(os, "getrandom") else "os.urandom",
        "suite": "X25519 + Ed25519 + AES-256 + SHA-256",
    }
    for name in _DEPENDENCIES:
        try:
            rows[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            rows[name] = "not installed"
    return rows


def _has_aes() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "unknown on this platform"
    words = {word for line in text.splitlines() if "flags" in line.lower() for word in line.split()}
    return "yes" if "aes" in words else "no"
