"""Pairs of encode and decode, one for each expert."""
