"""Where the memory that is dumped comes from: buffers and arrays, files, other processes."""
