"""The processes of a stage: their ranks, what they tell each other, and weights that ZeRO-3 shards."""
