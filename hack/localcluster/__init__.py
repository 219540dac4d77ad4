"""A real Kubernetes for one Linux machine without Docker: control planes for tests, one node for demos and e2e tests."""
