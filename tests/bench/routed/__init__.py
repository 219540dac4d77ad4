"""A real Gateway and Ingress controller before real servers: `make gateway-check` writes docs/benchmarks/gateway-check.md."""
