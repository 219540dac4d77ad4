"""`make demo`: the whole road on one screen, from a data file to an answer of the tuned, served model."""
