"""Images of processes: CRIU's folders, its pages, and running it."""
