"""Exchanges arrays with other frameworks."""
