"""Builds the project's images and pushes them to a registry, moving only what changed."""
