"""What `lazyrestore bench` measures, on the user's own machine."""
