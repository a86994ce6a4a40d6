from hypothesis import settings, Phase, HealthCheck
settings.register_profile("fast", max_examples=60, phases=[Phase.explicit, Phase.generate], database=None, deadline=None)
settings.load_profile("fast")
