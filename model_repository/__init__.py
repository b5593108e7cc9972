"""The templates of what Triton loads: one directory per model, with its config, and one adapter of all python models.

Nothing here can be served as it is. `cxr export` copies the templates, fills in the sizes and parameters of
one trained model and adds its weights. A size that depends on the model is -1 here.
"""
