"""What labels say together: agreement, consensus, disputes, strengths, and the status of a project."""
