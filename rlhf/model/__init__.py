"""The language model: one frozen base in memory, and the roles that adapters give it."""
