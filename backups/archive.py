"""What is stored of a backup: the engine's archive, compressed with zstd, encrypted with age, hashed on the way."""
