"""Process: what every process of the trainer needs, whatever it does. Imports no other room.

errors    the one tree of expected errors; `__main__` turns them into an outcome and an exit code
log       one JSON object a line on stderr
secrets   what must not be said, taken out of logs, outcomes and texts of errors
http      JSON to a server and back, tried again where that may help
signals   SIGTERM, raised as Stopped at once, or after a section that must not be cut in two
machine   cores and memory that this process may use
progress  how far a stage is, for the status and for Prometheus
"""
