"""The losses of rows, one a file. Importing this room reads all of them, which fills `retort.distill.registry`."""

from importlib import import_module
from pkgutil import iter_modules

for _each in iter_modules(__path__):
    import_module(f"{__name__}.{_each.name}")
