"""The embedded world: glyphs and drawings, and the models that were trained on them."""
from importlib import import_module


def __getattr__(name: str) -> object:
    "What the modules of the world have: `glyphworld.folder`, `glyphworld.SENSES`."
    if not name.startswith("__"):
        for module in ("world", "signs", "drawing", "painting"):
            found = vars(import_module(f".{module}", __name__))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
