"""Every setting of a model and its training: `settings.py` says them, `toml_file.py` reads and writes them."""
