"""Radiograph files -> grey pixels in the size of the model, and facts from their headers."""
