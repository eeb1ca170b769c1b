"""From files and hub data sets to records, with a count of every row."""
