"""What at least two stages share."""
