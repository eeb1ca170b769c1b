"""Texts that models write to be labeled, and rankings by scripts."""
