"""Process: what every process of the trainer needs. Imports no other room.

errors    the one tree of expected errors; `__main__` turns them into an outcome and an exit code
log       one JSON object a line on stderr
secrets   values of secrets, removed from logs, outcomes and error messages
http      JSON to a server and back, with one retry policy
trust     certificate authorities of the machine and of a company
signals   SIGTERM, raised as Stopped at once, or after a section that must not be interrupted
machine   cores and memory that this process may use
imports   packages that a process does without
termination  the outcome of a process, where the kubelet reads it
progress  how far a stage is, for the status and for Prometheus
"""
