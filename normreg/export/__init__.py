"""Programs and models for where this package is not: its operators in operations of others."""
