"""Situation: one class name in the two forms that Unicode has for accents (archives made on one system hold the
decomposed one, keyboards write the composed one). And names that are spelt with a joiner, as Persian, Hindi and many
emoji need.

Right: the two forms are one name wherever two sides of a set, or real and synthetic images, are compared; as two
classes of one set they are refused. Joiners (U+200C, U+200D) and the no-break space are no control characters.

Sources: github.com/uewepuep/FPVTracksideCore/pull/75, github.com/llmsresearch/paperbanana/pull/240,
github.com/spacechunks/explorer/pull/310
"""

import unicodedata

from _case import attempt, check, done, fill

from synthnb.datasets.sets import open_real
from synthnb.images.curate import open_synthetic
from synthnb.models.names import check_classes

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "cr\u00e8me br\u00fbl\u00e9e") for form in ("NFC", "NFD"))
for folder, name in {"real": DECOMPOSED, "drawn": COMPOSED, "sides/train": DECOMPOSED, "sides/test": COMPOSED}.items():
    fill(f"{folder}/{name}")
    fill(f"{folder}/waffle")

found = attempt(lambda: check_classes([COMPOSED, "waffle"]))
check("one form alone is a name", found.error is None, found.said)
found = attempt(lambda: open_synthetic("drawn", 32, open_real("real", 32)["train"].classes))
check("real images decomposed, synthetic ones composed: the same classes", found.error is None, found.said)
found = attempt(lambda: open_real("sides", 32))
check("train decomposed, test composed: the same classes", found.error is None, found.said)
found = attempt(lambda: check_classes([COMPOSED, DECOMPOSED]))
check("both forms as two classes are refused", found.error is not None, found.said or "accepted as two classes")
for what, name in {
    "Persian, with a non-joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Hindi, with a joiner": "\u0928\u094d\u200d\u092f\u093e",
    "an emoji of two, joined": "\U0001f469\u200d\U0001f692",
    "a no-break space": "Paris\u00a0Roubaix",
}.items():
    found = attempt(lambda: check_classes([name, "waffle"]))
    check(f"{what}: a name", found.error is None, ascii(found.said))
for what, name in {"a line break": "a\nb", "an override of the writing direction": "a\u202eb"}.items():
    found = attempt(lambda: check_classes([name, "waffle"]))
    check(f"{what}: still refused", found.error is not None, ascii(found.said))
done()
