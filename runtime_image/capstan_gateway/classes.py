"""Which SLO class a request belongs to, and which model name goes on to the engine.

The class header decides; without it a model alias does; without either it is the first declared class.
"""

from capstan_api.engine_args import SloClass
from capstan_api.names import HEADER_SLO_CLASS
from capstan_gateway.errors import InvalidRequest, ModelNotFound


class ClassTable:
    """The declared classes and served names of one deployment."""

    def __init__(self, served_model_names: tuple[str, ...], slo_classes: tuple[SloClass, ...]) -> None:
        """Raises ValueError when two classes could not be told apart."""
        self.served_model_names = served_model_names
        self.classes = slo_classes
        self._by_header: dict[str, SloClass] = {}
        self._by_alias: dict[str, SloClass] = {}
        if not slo_classes:
            raise ValueError("slo_classes: at least one class is needed")
        for slo_class in slo_classes:
            for value in {slo_class.name, slo_class.header_value or slo_class.name}:
                if self._by_header.setdefault(value, slo_class) is not slo_class:
                    raise ValueError(f"slo_classes: two classes answer to the header value {value!r}")
            if (alias := slo_class.model_alias) is not None:
                if alias in self._by_alias or alias in served_model_names:
                    raise ValueError(f"slo_classes: the model alias {alias!r} is taken already")
                self._by_alias[alias] = slo_class

    @property
    def default(self) -> SloClass:
        return self.classes[0]

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that a request may use as its model."""
        return (*self.served_model_names, *self._by_alias)

    def named(self, header: str | None) -> SloClass | None:
        """The class that a header value names, None without a header. Raises InvalidRequest for an unknown one."""
        if header is None:
            return None
        if (slo_class := self._by_header.get(header)) is None:
            known = ", ".join(sorted(self._by_header))
            raise InvalidRequest(
                f"Unknown SLO class. The header {HEADER_SLO_CLASS} takes one of: {known}.",
                param=HEADER_SLO_CLASS,
                code="unknown_slo_class",
            )
        return slo_class

    def select(self, header: str | None, model: str | None) -> tuple[SloClass, str | None]:
        """The class, and the name by which engines know the model (None when the request gives none).

        Raises InvalidRequest for an unknown class and ModelNotFound for an unknown model.
        """
        named = self.named(header)
        if model is None or model in self.served_model_names:
            return named or self.default, model
        if (by_alias := self._by_alias.get(model)) is not None:
            return named or by_alias, self.served_model_names[0]
        served = ", ".join(self.model_names)
        raise ModelNotFound(f"The requested model does not exist. Served here: {served}.", param="model")
