"""Words that nearly state a category. The text mode "findings_masked" hides them, so that a model must use the rest.

Each word is listed under the category that it reveals. `*` matches any letters: `*scolio*` hides scoliosis and
dextroscoliosis. Sites (rib, spine), sizes and descriptions (patchy, streaky) stay, because a reader may use them.
"""

import re
from typing import Final

MASK: Final = "[MASK]"
LABEL_WORDS: Final[dict[str, str]] = {
    "general_radiographic": "opacit* opacif* densit* lucen* *inflat* shadow* markings crowding airspace",
    "general_disease": "edema* congest* hypovolem* ascites dyspnea",
    "atelectasis": "atelecta* collaps* subsegmental volume volumes",
    "infection": "pneumonia* pneumonitis infect* infiltrat* consolidat* bronchitis abscess* empyema*",
    "fibrosis_ild": "fibro* interstitial* reticul* honeycomb* scar scars scarr* cicatri* bronchiec*",
    "copd_emphysema": "copd emphysem* hyper* flatten* bulla bullae bullous obstructive",
    "cardiac": "cardiomegal* enlarg* failure decompensat* pericardi* megaly",
    "aortic_vascular": (
        "aort* tortuo* atheroscl* arterioscl* atheromat* ectat* ectasia* unfold* aneurysm* vascular* *vascular"
    ),
    "pulmonary_vascular": "hypertens* redistribut* cephaliz* engorge* embol* arteries artery",
    "malignancy": "mass masses malignan* tumor* tumour* neoplas* cancer* carcinom* metasta* lymphom* lesion*",
    "nodule_cyst": "nodul* cyst* micronodul*",
    "granulomatous": "granulom* calcif* sarcoid* tubercul* histoplasm*",
    "lymphadenopathy": "*adenopath* lymph node nodes",
    "pleural": "pleura* effusion* thicken* blunt* fluid hydropneumo* costophrenic",
    "air_leak": "*pneumothora* pneumomediastin* pneumoperiton* subcutaneous",
    "msk_trauma": "fractur* dislocat* subluxat* healed healing trauma* posttrauma* compress*",
    "msk_degenerative": (
        "degenerat* osteophyt* spondyl* *arthrit* arthros* arthropath* spur* dish discogenic hypertroph*"
    ),
    "msk_other": (
        "*scolio* kypho* *kyphosis osteop* deminerali* deform* pectus excavatum curvature scleros* sclerot*"
    ),
    "hernia_diaphragm": "hernia* hiatal hiatus *diaphragm* eventrat* elevat*",
    "abdominal_gi": "*periton* bowel colon* gastric stomach cholelith* gallston*",
    "miscellaneous": (
        "catheter* tube tubes line lines lead leads pacemaker* pacer device* defibrillat* stimulator* clip clips "
        "port stent* valve* prosthe* hardware wire wires sternotom* surg* postsurg* postop* *ectomy* implant* azygos "
        "foreign"
    ),
    "normal": "normal* unremarkable clear",
}


def mask_label_words(text: str) -> str:
    """Return the text with every word of `LABEL_WORDS` replaced by [MASK]."""
    return _PATTERN.sub(MASK, text)


def _compile() -> "re.Pattern[str]":
    words = sorted({word for words in LABEL_WORDS.values() for word in words.split()})
    alternatives = "|".join(word.replace("*", r"\w*") for word in words)
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE | re.ASCII)


_PATTERN: Final = _compile()
