"""Writes YAML that parsers of YAML 1.1, as kubectl's, and of YAML 1.2 take for the same."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

Object = dict[str, Any]

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*|[0-9]+[KMGTP]i")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


class _Representer(RoundTripRepresenter):
    """Writes what YAML 1.1, which kubectl reads, and YAML 1.2, which the trainer reads, take for the same value."""

    def represent_text(self, text: str) -> Any:
        plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')

    def represent_number(self, value: float) -> Any:
        """With a dot: YAML 1.1 takes 1e-05 for text."""
        text = repr(value)
        return self.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))

    def represent_nothing(self, _: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - what is written twice is printed twice
        return True


_Representer.add_representer(str, _Representer.represent_text)
_Representer.add_representer(float, _Representer.represent_number)
_Representer.add_representer(type(None), _Representer.represent_nothing)


def render(manifest: Object) -> str:
    """A manifest as YAML, the same to parsers of YAML 1.1 and 1.2."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(manifest, stream)
    return stream.getvalue()
