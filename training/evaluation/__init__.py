"""Evaluate a model: labels, retrieval, controls, and the published metrics.

labels.py              AUROC, average precision, F1, Brier score and calibration error
bootstrap.py           intervals and paired differences from resampled patients
ranking.py             precision, recall, AP, MRR and nDCG of ranked cases; recall between images and reports
sentences.py           search by a sentence that states a label
zero_shot.py           scores of labels in words that were held out of training
parts.py               the transformer and the lexical part of a model, each alone
view_head.py           accuracy of a model's view head (lateral or frontal)
paired.py              paired tests of model against control
published.py           the published retrieval metrics, which are too optimistic, for comparison with published figures
control.py             TF-IDF controls: logistic regression and nearest neighbours
plan.py                the studies and the ways to read them (image, parts of the report, swapped inputs)
predict.py             predictions of a bundle's PyTorch model; the `cxr` command adds those of a served model
split_predictions.py   all predictions for an evaluation; comparison of two models' predictions
measure.py             predictions -> results
splits.py              only the controls, over several splits of a table
report.py              results -> Markdown, with report_prompts.py, report_search.py and markdown.py
plots.py               results -> pictures
"""
