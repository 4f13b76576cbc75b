"""The losses of rows, one per file. Importing this package registers all of them in `retort.distill.registry`."""

from importlib import import_module
from pkgutil import iter_modules

for _each in iter_modules(__path__):
    import_module(f"{__name__}.{_each.name}")
