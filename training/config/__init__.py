"""Every setting of a model and its training: `settings.py` defines them, `toml_file.py` reads and writes them."""
