"""`make demo`: from a data file to an answer of the tuned, served model, on one screen."""
