"""A small artificial case, a grey ramp and one sentence, to check whether a server still infers."""

from typing import Final

import numpy as np

from contract.image.png import encode_png

_SIDE: Final = 128  # pixels
_RAMP: Final = np.linspace(0, 255, _SIDE).astype(np.uint8)  # black to white

PROBE_IMAGE: Final = encode_png(np.tile(_RAMP, (_SIDE, 1)))
PROBE_REPORT: Final = b"FINDINGS: The lungs are clear. IMPRESSION: No acute disease."
PROBE_INPUTS: Final[dict[str, bytes]] = {"image_bytes": PROBE_IMAGE, "report": PROBE_REPORT}
PROBED: Final = ("predict_study", "predict_image", "predict_text")  # the models that clients with files use
