"""Describe a data set: `cxr data audit`.

figures.py  studies table -> JSON-ready counts and shares
plots.py    figures -> SVG pictures
page.py     figures and pictures -> one HTML page (page.html)
"""
