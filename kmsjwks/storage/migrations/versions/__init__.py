"""One module a revision, forward only: to go back, restore the backup taken before."""
