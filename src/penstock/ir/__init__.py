"""The nouns: trace, machine, plan, schedule, timeline. Frozen data, no torch, no device."""
