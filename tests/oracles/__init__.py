"""Independent answers: dense float64 algebra, autograd, and random laws of every shape to ask about."""
