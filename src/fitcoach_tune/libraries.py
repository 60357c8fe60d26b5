"""Around the model libraries: their own output is kept off the terminal, and their errors become the program's."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from fitcoach_tune.errors import FitcoachTuneError, MismatchError

# Or accelerate, which transformers and peft import, would import an installed torch_xla and let it choose a device.
os.environ.setdefault("USE_TORCH_XLA", "0")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own progress bars and advice off the terminal; their errors still come through."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        # What the libraries mean to change about each other is none of the user's business.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


@contextlib.contextmanager
def loading(what: str, path: Path) -> Iterator[None]:
    """Around what libraries make of files that may be damaged: whatever they raise becomes a MismatchError."""
    try:
        yield
    except FitcoachTuneError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise MismatchError(f"{what} cannot be loaded: {why}", where=str(path)) from None


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """While much is imported and loaded, of which nothing is thrown away: Python's collector would look through all of
    it again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
