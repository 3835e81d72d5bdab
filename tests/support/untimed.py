"""How Hypothesis runs: no test measures time, so a busy machine must not fail one. As many examples as CI has time for."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "untimed", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")
