"""`conductor doctor`: what may go wrong where this installation runs, and what to do about it."""
