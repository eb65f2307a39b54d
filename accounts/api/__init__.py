"""Section Accounts of API v1."""
