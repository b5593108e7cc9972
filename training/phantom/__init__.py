"""Phantoms: drawn chest radiographs with drawn findings and matching reports, in Open-i's own layout.

They let the whole stack be trained, served and tested without patient data. They prove that the machine works,
not that a model is good: a score on phantoms says nothing about patients.

    film      layers of density -> grey          anatomy   the patient, in centimetres
    frontal   normal chest from the front        lateral   normal chest from the side
    findings  which findings there are           lungs, pleura, chest   how they look
    prose, wordings   the report                 headers   distribution of the real DICOM headers
    write     DICOM and XML files                draw      plan, processes, data set
"""

from training.phantom.draw import draw_dataset

__all__ = ["draw_dataset"]
