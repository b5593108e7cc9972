"""Explanations as DICOM objects that belong to the study of the radiograph.

source.py    the radiograph: what the new objects refer to and copy, and the refusal of a file that is none
device.py    this program and the model, as DICOM names them
codes.py     coded names of findings, values and decisions
strip.py     the text below a picture
capture.py   Secondary Capture: the picture of a map, with its legend burned in
report.py    Structured Report (TID 1500): every finding with its probability, threshold and decision
outlines.py  Presentation State: outlines of a map, which a viewer draws over the radiograph itself
write.py     all of them, written into a directory

A map that did not pass the checks of its bundle is in none of them (`contract.map_checks`).
"""
