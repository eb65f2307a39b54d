"""Pages of projects. Thin: a scoped fetch, a permission check, the same services as the API."""
