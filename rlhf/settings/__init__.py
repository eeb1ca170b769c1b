"""What a run is asked to do: recipes, their typed groups of settings, and the words of an error in one."""
