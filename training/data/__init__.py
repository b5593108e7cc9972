"""Read reports and images of public collections into one table of studies.

openi.py          reports and headers of Open-i -> the table; `collections/` reads other collections
mesh.py           MeSH headings -> the 22 categories, by `mesh.csv`
openi_views.py    order the images of a study, frontal first, by headers and `projections.py`
studies.py        the table in memory, with pixels from `decode.py` or `cache.py`
split.py          training, validation and test, by patient and by text (`duplicates.py`)
audit/            a page that describes a table
"""
