"""What a data set holds and where it is uneven: `cxr data audit`.

figures.py  studies table -> counts and shares that JSON can hold
plots.py    figures -> SVG pictures
page.py     figures and pictures -> one HTML page (page.html)
"""
