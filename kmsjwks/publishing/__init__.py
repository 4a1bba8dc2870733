"""Places that documents are published to, and the look at them from outside."""
