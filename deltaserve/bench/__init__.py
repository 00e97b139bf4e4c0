"""Open-loop load on a served system: a seeded schedule, a runner that never waits for answers, a pure report."""
