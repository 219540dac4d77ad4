"""Shared by the development tools: the cache folder, progress lines, commands, Debian packages, Go."""
