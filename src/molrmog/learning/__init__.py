"""How a law is learned from rows of data."""
