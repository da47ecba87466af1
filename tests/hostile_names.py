"""Names of parameters that nobody means well, for whatever takes names from people."""

HOSTILE = [
    "z=1;import os;y",
    "__import__('os')",
    "shots\n",
    "shots ",
    "a.b",
    "a[0]",
    "1shots",
    "lambda",
    "class",
    "sh\u043ets",
    "\u202eshots",
    "x" * 5000,
    "../../etc",
    "{shots}",
    "$(touch x)",
    "`touch x`",
    "shots;",
    "import os",
    "None",
]
