"""Homomorphic aggregation."""
