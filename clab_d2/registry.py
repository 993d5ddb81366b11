"""Registries of the parts that a config names: a new part is a class and one line of YAML."""

from __future__ import annotations

import traceback
from typing import Any, TypeVar

from detectron2.config import configurable
from fvcore.common.registry import Registry as _Registry

from clab_d2.errors import ConfigError, PartError

T = TypeVar("T")

# Where a call with wrong arguments fails without a line of the called one being run.
_CALLERS = (__file__, configurable.__code__.co_filename)


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
            PartError: it is a class that lacks methods of its protocol.
        """
        if name not in self:
            raise ConfigError(
                f"{self.key} {name!r} is not registered; choose one of "
                f"{', '.join(self.names())}, or import the module that registers it with --import"
            )
        entry = super().get(name)
        missing = sorted(getattr(entry, "__abstractmethods__", ()))
        if missing:
            raise PartError(
                f"{self.key} {name!r}: class {entry.__name__} lacks "
                f"{', '.join(f'{method}()' for method in missing)}; docs/extend.md shows what such "
                "a class has"
            )
        return entry

    def build(self, name: str, protocol: type[T], *arguments: Any) -> T:
        """Call the entry of that name.

        Args:
            name: of the entry.
            protocol: class that the result must be of.
            arguments: of the call.

        Raises:
            ConfigError: as :meth:`get`.
            PartError: it does not take these arguments, or gives something else.
        """
        entry = self.get(name)
        try:
            part = entry(*arguments)
        except TypeError as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename not in _CALLERS:
                raise  # within it: the user's to see whole
            raise PartError(
                f"{self.key} {name!r} can't be built: {error}; docs/extend.md shows its arguments"
            ) from error
        if not isinstance(part, protocol):
            raise PartError(
                f"{self.key} {name!r} is a {type(part).__name__}; derive it from "
                f"{protocol.__module__}.{protocol.__qualname__}"
            )
        return part

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(name for name, _ in self)

