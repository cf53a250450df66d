"""What lets a run survive signals, hangs, restarts and a second process. Skip it on first reading."""
