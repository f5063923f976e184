"""What belongs to the process and not to any model: files, the cache directory, the allocator, threads."""
