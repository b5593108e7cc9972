"""Templates of the published model repository: a config for each model, and one `model.py` for all python models.

Triton cannot serve these files unchanged. `cxr export` copies the templates, fills in the sizes and parameters of one
trained model and adds its weights. A size that depends on the model is -1 here.
"""
