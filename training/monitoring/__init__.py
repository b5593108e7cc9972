"""Drift: compare what a model reads and answers now with a reference, without labels.

sample.py      the cases of one way of reading: probabilities, embeddings, statistics of the inputs
inputs.py      statistics of image files and reports
reference.py   the reference of a bundle: made from studies, written to a folder, read again
results.py     the tables of `cxr predict --out`
statistics.py  population stability index, two-sample tests, maximum mean discrepancy
compare.py     the rows of a comparison, with a verdict each
page.py        rows -> one HTML page with plots
metrics.py     rows -> a file for Prometheus
"""
