"""Read public label files into one studies table. Each format is one module, each mapping one table.

table.py       a format, its files and images -> the studies table
csv_rows.py    CSV files row by row; an error names file, line and column
mapping.py     labels of a collection -> the 22 categories: present, absent or unknown
mappings/      one table for each collection, with a reason for each doubtful row
study.py       the study that every reader yields
nih14.py  chexpert.py  mimic_cxr.py  vindr.py  padchest.py  kermany.py  own_csv.py    the readers
"""
