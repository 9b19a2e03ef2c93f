"""Stand-ins for libraries that this machine does not have."""
