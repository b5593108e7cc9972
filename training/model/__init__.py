"""The network: encoders of images and texts, fusion, and the pretrained weights that they start from.

model.py          the whole, and the graphs that are exported
backbone.py       image encoders: `swin.py`, or any of timm's
fusion.py         image and text together, attention per label; `lexical.py` adds words, `view_head.py` the view
weights.py        pretrained weights into a model; `adopt_image.py`, `timm_names.py` and `weight_files.py` read them
"""
