"""Reports in the forms that hospitals use -> sections -> token ids."""
