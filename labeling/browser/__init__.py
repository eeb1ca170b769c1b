"""The labeler's screen in a browser: one process for each page, behind a token for each labeler."""
