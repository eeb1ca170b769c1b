"""Responses drawn from a role of the model, and what is kept of them."""
