"""Command lines: arguments, the process that runs a command, and the launcher of several processes."""
