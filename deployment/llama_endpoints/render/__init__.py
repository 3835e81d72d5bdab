"""Plans as YAML specifications for Azure ML."""
