"""Which machine size holds which model, how fast it is, and what it costs."""
