"""Results, their comparison with published figures and with each other, and the report."""
