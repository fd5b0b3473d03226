"""Optional packages: what needs one says which, and how to get it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str | None, what: str) -> ModuleType:
    """Import a package that `pip install lazyrestore` does not bring.

    For its types write `import` behind this call:

        require("numpy", "numpy", "Region.array()")
        import numpy

    Args:
        module: what is imported, dots included.
        extra: of lazyrestore, that brings it; None: it is to be installed by its own name.
        what: needs it, as the user knows it: "Region.array()", "--metrics".

    Raises:
        ModuleNotFoundError: it is not installed; says what to install.
        ImportError: it is, but cannot be imported; says why.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        install = f"pip install '{f'lazyrestore[{extra}]' if extra else package}'"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing == package:
            message = f"{what} needs {package}, which is not installed: {install}"
            raise ModuleNotFoundError(message, name=package) from None
        raise ImportError(
            f"{what} needs {module}, which cannot be imported ({error}): install it again,"
            f" {install.replace('install', 'install --force-reinstall', 1)}",
            name=module,
        ) from error
