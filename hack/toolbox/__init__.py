"""What the development tools share: the cache folder, progress lines, commands, Debian packages, Go."""
