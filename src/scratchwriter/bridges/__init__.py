"""Optional integrations: one module per library, imported only if it is installed."""
