"""Cryptographic building blocks. Hazardous: easy to misuse, so never re-exported.

Import the module that you need (``privfedrl.primitives.shamir`` ...) and read its header first.
Each one states what it guarantees and what its caller must guarantee in turn.
"""
