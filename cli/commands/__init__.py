"""One file for each command or group of commands: its options, the call of one package, and what it prints."""
