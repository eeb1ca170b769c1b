"""What one layer computes: the router of the forward pass, and faster forms of what transformers has."""
