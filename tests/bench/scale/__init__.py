"""A real autoscaler of a ServingPool: `make scale-check` writes docs/benchmarks/scale-check.md, with KEDA scale-check-keda.md."""
