"""What `lazyrestore demo` runs: a program with a state, and the steps that dump and restore it."""
