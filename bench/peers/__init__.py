"""Peers, each in an environment and a process of its own: `make bench-peers` installs them below `build/peers`."""
