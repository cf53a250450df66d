"""What lets a run survive signals, hangs, restarts and a second process. A first reader may skip it."""
