"""The races against TRL: the same work on both sides, each racer in a process of its own."""
