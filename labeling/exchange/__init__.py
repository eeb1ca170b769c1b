"""Files in and out: items, labels made elsewhere, scores, and labels as training data."""
