"""Write plans as YAML files for Azure ML."""
