"""What a labeling project is made of, and the database in which it is kept."""
