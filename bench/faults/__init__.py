"""A server among faults and bad clients: every good answer stays right."""
