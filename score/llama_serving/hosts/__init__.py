"""What runs the service inside somebody else's process: Azure ML's inference server and batch jobs, and MLflow."""
