"""The manifest beside a backup: what was dumped, signed and encrypted."""
