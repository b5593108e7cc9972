"""Test a server with faults and bad clients: every good answer must stay right."""
