"""The embedded world: glyphs and drawings, and the models that were trained on them."""
from importlib import import_module


def __getattr__(name: str) -> object:
    "What the module `world` has: `glyphworld.folder`, `glyphworld.sense`."
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module(".world", __name__), name)
