"""Desired state: facts in, manifest out. No client, no clock, no error; each file builds one kind and reads like its YAML."""
