"""Registries of the parts that a config names: a new part is a class and one line of YAML."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry as _Registry

from clab_d2.errors import ConfigError


class Registry(_Registry):
    """Detectron2's registry, whose entries may have another name than their class.

    ::

        @REGISTRY.register()                # under the class's own name
        @REGISTRY.register(name="causal")   # under this one

    A name that nothing is registered under is a :class:`ConfigError` that lists those there are.
    """

    def __init__(self, kind: str, key: str) -> None:
        """
        Args:
            kind: what is registered, for messages.
            key: the config key that names an entry.
        """
        super().__init__(kind)
        self.key = key

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Register a class or function, as a decorator or by a call."""

        def add(entry: Any) -> Any:
            self._do_register(name or entry.__name__, entry)
            return entry

        return add if obj is None else add(obj)

    def get(self, name: str) -> Any:
        """The entry of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self:
            raise ConfigError(
                f"{self.key} {name!r} is not registered; choose one of "
                f"{', '.join(self.names())}, or import the module that registers it with --import"
            )
        return super().get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(name for name, _ in self)

