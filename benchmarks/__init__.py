"""Side-by-side measurements of this pipeline against the library that a user would otherwise take."""
