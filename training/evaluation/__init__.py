"""How good is a model: labels, retrieval, controls, and what published figures would say of it.

labels.py      AUROC, average precision, F1, Brier score and calibration error, with patient-bootstrap intervals
ranking.py     precision, recall, AP, MRR and nDCG of ranked cases; recall between images and reports
sentences.py   search by a sentence that states a label
parts.py       the transformer and the lexical part of a model, each alone
view_head.py   how well a model tells lateral views from frontal ones
paired.py      paired tests of model against control
published.py   the published retrieval metrics, which flatter, to lay figures side by side
control.py     TF-IDF: logistic regression and nearest neighbours, what counting words reaches
plan.py        which studies are asked, in which ways (image, parts of the report, swapped inputs)
predict.py     asks a bundle's PyTorch model; the served model is asked by the `cxr` command
ask.py         asks a model everything; compares what two of them said
measure.py     answers -> results
splits.py      the controls alone, over several splits of a table
report.py      results -> Markdown, with report_search.py and markdown.py;  plots.py  results -> pictures
"""
