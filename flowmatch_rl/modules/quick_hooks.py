"""A shortcut through the bookkeeping around the hooks of a module."""

from typing import Any


class QuickHooks:
    """Mixin, left of ``LightningModule``.

    Around every hook of an update Lightning writes the hook's name into the module, some forty times per update, and
    each time torch looks whether the value is a parameter, a buffer or a module. For small networks that is a
    noticeable part of an update.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
