"""Training: settings, schedule, one epoch, checkpoints, and faults told in one line."""
