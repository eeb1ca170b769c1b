"""Labelers and adjudicators at work: what every screen and script calls."""
