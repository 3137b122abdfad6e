"""Denoisers: what estimates the clean point behind a noised one, and what is made of several."""
