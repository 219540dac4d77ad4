"""Desired state: from facts to manifests. No client, no clock, no errors; each file builds one kind and reads like its YAML."""
