"""Data in, data sets out: reports and images of public collections become one table of studies.

openi.py          reports and headers of Open-i -> the table; `collections/` reads other collections
mesh.py           MeSH headings -> the 22 categories, by `mesh.csv`
openi_views.py    which image of a study is the frontal one, by headers and `projections.py`
studies.py        the table in memory, with the pixels that `decode.py` read or `cache.py` keeps
split.py          training, validation and test, by patient and by words (`duplicates.py`)
audit/            a page that describes a table
"""
