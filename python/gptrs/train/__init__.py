"""Training: settings, optimizer, schedule, checkpoints, metrics, the only loop and the stages that call it."""
