"""Training: settings, schedule, one epoch, checkpoints, and faults reported in one line."""
