"""Azure ML endpoints: compare them with their files, plan the changes, apply them, and roll traffic out in steps."""
