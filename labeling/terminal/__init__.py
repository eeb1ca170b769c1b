"""The labeler's full-screen program, in a terminal or served to a browser."""
