"""Evaluate the maps of explanations: do they find what was drawn, and do they depend on what the model learned?

subject.py    what is measured: one finding of one case, and the function that makes its maps
boxes.py      boxes of findings: phantoms, COCO files, the boxes of a studies table
controls.py   the centre of the picture and random maps, against which every method is held
localise.py   pointing game, energy in the box, IoU at the area of the box
faithful.py   deletion and insertion, infidelity and sensitivity
sanity.py     randomised weights, other findings, padding, MONOCHROME1 twins, completeness
twin.py       the MONOCHROME1 twin of a DICOM file
ssim.py       structural similarity of two maps
agreement.py  attention against attribution, as the published system reports it
measure.py    all of these -> results, with intervals by patient
gate.py       results -> which map may stand as a reason
report.py     results -> Markdown;  plots.py  results -> pictures
"""
