"""Phantoms: drawn chest radiographs with drawn findings and matching reports, in the layout of Open-i.

With them the whole stack can be trained, served and tested without patient data. They show that the software works, not
that a model is good: a score on phantoms says nothing about patients.

    film      layers of density -> grey          anatomy   the patient, in centimetres
    frontal   normal chest from the front        lateral   normal chest from the side
    findings  the kinds of findings              lungs, pleura, chest   how they look
    prose, wordings   the report                 headers   distribution of the real DICOM headers
    write     DICOM and XML files                draw      plan, processes, data set
"""

from training.phantom.draw import draw_dataset

__all__ = ["draw_dataset"]
