"""Mathematics that knows of no model: masked means, intervals, agreement of a reward with labels."""
